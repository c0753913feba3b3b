/*
 * pause: PID 1 of every pod. It holds the pod's namespaces, reaps what the pod's
 * containers orphan, and ends with status 0 on SIGINT or SIGTERM.
 *
 * It uses no C library: the whole program is a few hundred bytes of code and
 * touches a handful of pages, which counts because every pod has one. build.sh
 * compiles it; x86-64 and AArch64.
 */
#define SIGINT 2
#define SIGTERM 15
#define SIGCHLD 17
#define SIG_BLOCK 0
#define WNOHANG 1

#if defined(__x86_64__)
enum { sys_rt_sigprocmask = 14, sys_wait4 = 61, sys_rt_sigtimedwait = 128, sys_exit_group = 231 };

static long syscall4(long nr, long a, long b, long c, long d)
{
	long ret;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return ret;
}
#elif defined(__aarch64__)
enum { sys_exit_group = 94, sys_rt_sigprocmask = 135, sys_rt_sigtimedwait = 137, sys_wait4 = 260 };

static long syscall4(long nr, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = nr;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
#else
#error "pause knows the system calls of x86-64 and AArch64 only"
#endif

/* Called by the kernel: nothing to return to, and no alignment to count on. */
void _start(void)
{
	/* Blocked signals stay pending until they are waited for, so none is lost, and no handler is needed. */
	unsigned long set = 1UL << (SIGINT - 1) | 1UL << (SIGTERM - 1) | 1UL << (SIGCHLD - 1);

	syscall4(sys_rt_sigprocmask, SIG_BLOCK, (long)&set, 0, sizeof(set));
	for (;;) {
		/* One SIGCHLD may stand for several children; some may have ended before pause was PID 1. */
		while (syscall4(sys_wait4, -1, 0, WNOHANG, 0) > 0)
			;
		long sig = syscall4(sys_rt_sigtimedwait, (long)&set, 0, 0, sizeof(set));
		if (sig == SIGINT || sig == SIGTERM)
			syscall4(sys_exit_group, 0, 0, 0, 0);
	}
}
