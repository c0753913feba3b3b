package probe

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// An ability is what a kernel can be asked for. It tries the thing itself, takes back what it did, and returns the
// kernel's answer.
type ability struct {
	arguments string
	try       func(arguments []string) error
}

var abilities map[string]ability

func init() { // not a literal: canJoin comes back here
	abilities = map[string]ability{
		"read":            {"FILE", canRead},
		"mount":           {"TYPE SOURCE OPTIONS", canMount},
		"overlay":         {"FOLDER", canOverlay},
		"share-mounts":    {"", canShareMounts},
		"tune":            {"NAME...", canTune},
		"tune-pods":       {"NAME...", canTunePods},
		"own-namespaces":  {"", canOwnNamespaces},
		"set-uid":         {"", canSetUID},
		"be-root":         {"", canBeRoot},
		"number-procfs":   {"", canNumberProcfs},
		"log":             {"", canLog},
		"group":           {"", canGroup},
		"stat-cgroups":    {"", canStatCgroups},
		"isolate-cgroups": {"", canIsolateCgroups},
		"adopt-orphans":   {"", canAdoptOrphans},
		"join":            {"TYPE", canJoin},
		"wait":            {"", wait},
		"link":            {"TYPE", canLink},
		"filter":          {"", canFilter},
		"filter-pods":     {"", canFilterPods},
	}
}

// facadeCgroups is there when the cgroup mounts are the facade's; see config/facade.ts.
const facadeCgroups = "/run/gvisor-k3s/cgroup-mounts"

// Can answers whether the kernel can do something; nil means yes. It must have the process for itself.
func Can(args []string) error {
	if len(args) == 0 {
		args = []string{""}
	}
	asked, known := abilities[args[0]]
	if !known {
		return fmt.Errorf(
			"can %q: unknown, there are %s",
			args[0],
			strings.Join(slices.Sorted(maps.Keys(abilities)), ", "),
		)
	}
	if wanted := len(strings.Fields(asked.arguments)); len(args)-1 != wanted &&
		!(strings.HasSuffix(asked.arguments, "...") && len(args) > wanted) {
		return fmt.Errorf("can %s takes %s", args[0], cmp.Or(asked.arguments, "no arguments"))
	}
	// What is mounted here vanishes with this thread, also where it is killed. A kernel that has no mount namespaces is
	// asked anyway.
	runtime.LockOSThread()
	if unix.Unshare(unix.CLONE_NEWNS) == nil {
		_ = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	return asked.try(args[1:])
}

func canRead(args []string) error {
	file, err := os.Open(args[0])
	if err == nil {
		file.Close()
	}
	return err
}

func canMount(args []string) error {
	return mounted(args[0], args[1], args[2], func(string) error { return nil })
}

// mounted runs use with a mount that is there only for it.
func mounted(kind, source, options string, use func(target string) error) error {
	target, err := os.MkdirTemp("", "can-")
	if err != nil {
		return err
	}
	defer os.Remove(target)
	if err := unix.Mount(source, target, kind, 0, options); err != nil {
		return fmt.Errorf("mount -t %s -o %q: %w", kind, options, err)
	}
	return errors.Join(use(target), unix.Unmount(target, unix.MNT_DETACH))
}

// canOverlay mounts an overlay whose layers lie in a folder, and makes a file in it.
func canOverlay(args []string) error {
	work, err := os.MkdirTemp(args[0], ".can-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	layer := func(name string) string {
		path := filepath.Join(work, name)
		err = errors.Join(err, os.Mkdir(path, 0o700))
		return path
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", layer("lower"), layer("upper"), layer("work"))
	if err != nil {
		return err
	}
	return mounted("overlay", "overlay", options, func(target string) error {
		return os.WriteFile(filepath.Join(target, "file"), nil, 0o600)
	})
}

// canShareMounts does what the kubelet does to its folder: mount --make-rshared.
func canShareMounts([]string) error {
	return mounted("tmpfs", "tmpfs", "", func(target string) error {
		if err := unix.Mount("", target, "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
			return fmt.Errorf("mount --make-rshared: %w", err)
		}
		return nil
	})
}

// canTune looks for kernel tunables in a procfs of its own, which nothing covers.
func canTune(names []string) error {
	return mounted("proc", "proc", "", func(proc string) error {
		var missing []error
		for _, name := range names {
			file, err := os.OpenFile(filepath.Join(proc, "sys", name), os.O_RDWR, 0)
			if err != nil {
				missing = append(missing, fmt.Errorf("/proc/sys/%s: %w", name, errors.Unwrap(err)))
				continue
			}
			file.Close()
		}
		return errors.Join(missing...)
	})
}

// canTunePods wants tunables that are a network namespace's own: one that is changed in one is the same as before in
// another. What was changed by that is put back.
func canTunePods(names []string) error {
	if err := canTune(names); err != nil {
		return err
	}
	return mounted("proc", "proc", "", func(proc string) error {
		file := filepath.Join(proc, "sys/net/ipv4/ip_local_port_range")
		before, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		written := make(chan error)
		go func() {
			runtime.LockOSThread() // and never let go of: the thread ends with its namespace
			err := unix.Unshare(unix.CLONE_NEWNET)
			if err == nil {
				err = os.WriteFile(file, []byte("20000 20999"), 0)
			}
			written <- err
		}()
		if err := <-written; err != nil {
			return fmt.Errorf("in a network namespace of its own: %w", err)
		}
		if after, err := os.ReadFile(file); err != nil || string(after) == string(before) {
			return err
		}
		return errors.Join(errors.New("/proc/sys/net is the same in every network namespace"),
			os.WriteFile(file, before, 0))
	})
}

// canOwnNamespaces asks which user namespace a network namespace belongs to, as containerd does.
func canOwnNamespaces([]string) error {
	file, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer file.Close()
	owner, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return fmt.Errorf("ioctl NS_GET_USERNS: %w", err)
	}
	return unix.Close(owner)
}

// canSetUID has somebody else start a program that is root's and has the setuid bit: this one.
func canSetUID([]string) error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	return mounted("tmpfs", "tmpfs", "mode=0755", func(folder string) error {
		program := filepath.Join(folder, "program")
		if err := os.WriteFile(program, self, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(program, 0o755|os.ModeSetuid); err != nil {
			return err
		}
		// It is started from its folder, since those above are not for everybody.
		cmd := exec.Command("./program", "can", "be-root")
		cmd.Dir = folder
		const nobody = 65534
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("a program with the setuid bit: %w: %s", err, strings.TrimSpace(string(output)))
		}
		return nil
	})
}

func canBeRoot([]string) error {
	if id := os.Geteuid(); id != 0 {
		return fmt.Errorf("the effective user is %d", id)
	}
	return nil
}

// canNumberProcfs wants the inode number that Linux gives the root of every procfs.
func canNumberProcfs([]string) error {
	var stat unix.Stat_t
	if err := unix.Stat("/proc", &stat); err != nil || stat.Ino == 1 {
		return err
	}
	return fmt.Errorf("the root of /proc has the inode number %d", stat.Ino)
}

// canLog wants the kernel's log device, and not a null device in its place.
func canLog([]string) error {
	var stat unix.Stat_t
	if err := unix.Stat("/dev/kmsg", &stat); err != nil {
		return fmt.Errorf("/dev/kmsg: %w", err)
	}
	if stat.Rdev != unix.Mkdev(1, 11) {
		return fmt.Errorf("/dev/kmsg is device %d:%d", unix.Major(stat.Rdev), unix.Minor(stat.Rdev))
	}
	return nil
}

// canGroup wants cgroups to be mounted, by somebody else than the facade.
func canGroup([]string) error {
	cgroups, err := mountinfo.GetMounts(
		func(m *mountinfo.Info) (skip, stop bool) { return !strings.HasPrefix(m.FSType, "cgroup"), false },
	)
	if err != nil {
		return err
	}
	if _, err := os.Stat(facadeCgroups); err == nil || len(cgroups) == 0 {
		return errors.New("no cgroup is mounted")
	}
	return nil
}

// canStatCgroups asks a cgroup's file which file system it is on, as runc does before it writes into one.
func canStatCgroups([]string) error {
	return mounted("cgroup", "cgroup", "memory", func(target string) error {
		var fs unix.Statfs_t
		file := filepath.Join(target, "cgroup.procs")
		if err := unix.Statfs(file, &fs); err != nil {
			return fmt.Errorf("statfs %s: %w", file, err)
		}
		return nil
	})
}

// canAdoptOrphans asks for the orphans among the descendants of this process, as containerd's shim does.
func canAdoptOrphans([]string) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl(PR_SET_CHILD_SUBREAPER): %w", err)
	}
	return nil
}

// canIsolateCgroups makes a cgroup namespace, where containers get one: they do only with version 2.
func canIsolateCgroups([]string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("unshare(CLONE_NEWCGROUP): %w", err)
	}
	return nil
}

// canJoin joins a namespace of another process.
func canJoin(args []string) error {
	types := map[string]uintptr{"pid": unix.CLONE_NEWPID, "net": unix.CLONE_NEWNET}
	kind, known := types[args[0]]
	if !known {
		return fmt.Errorf("namespace type %q: net or pid is allowed", args[0])
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	other := exec.Command(self, "can", "wait")
	other.SysProcAttr = &unix.SysProcAttr{Cloneflags: kind}
	input, err := other.StdinPipe()
	if err != nil {
		return err
	}
	if err := other.Start(); err != nil {
		return fmt.Errorf("clone with a new %s namespace: %w", args[0], err)
	}
	defer other.Wait()
	defer input.Close()
	namespace, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", other.Process.Pid, args[0]))
	if err != nil {
		return err
	}
	defer namespace.Close()
	if err := unix.Setns(int(namespace.Fd()), int(kind)); err != nil {
		return fmt.Errorf("setns into a %s namespace: %w", args[0], err)
	}
	return nil
}

// wait is the other process of canJoin.
func wait([]string) error {
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func canLink(args []string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare(CLONE_NEWNET): %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "can0"
	links := map[string]netlink.Link{
		"veth":   &netlink.Veth{LinkAttrs: attrs, PeerName: "can1"},
		"bridge": &netlink.Bridge{LinkAttrs: attrs},
	}
	link, known := links[args[0]]
	if !known {
		return fmt.Errorf("link type %q: veth or bridge is allowed", args[0])
	}
	if err := netlink.LinkAdd(link); err != nil {
		return fmt.Errorf("ip link add type %s: %w", args[0], err)
	}
	return nil
}

// canFilter asks for the nat table of iptables, without which kube-proxy serves no Service.
func canFilter([]string) error {
	const getInfo = 64 // IPT_SO_GET_INFO in linux/netfilter_ipv4/ip_tables.h
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("a raw socket: %w", err)
	}
	defer unix.Close(socket)
	info := [84]byte{'n', 'a', 't'} // struct ipt_getinfo
	size := uint32(len(info))
	_, _, errno := unix.Syscall6(
		unix.SYS_GETSOCKOPT,
		uintptr(socket),
		unix.IPPROTO_IP,
		getInfo,
		uintptr(unsafe.Pointer(&info)),
		uintptr(unsafe.Pointer(&size)),
		0,
	)
	if errno != 0 {
		return fmt.Errorf("iptables table nat: %w", errno)
	}
	return nil
}

// canFilterPods does what the service proxy does to enforce network policies: it makes a tap, and takes a port to
// another namespace.
func canFilterPods([]string) error {
	var there *os.File
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare(CLONE_NEWNET): %w", err)
		}
		there, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return err
	}
	defer there.Close()
	return canMovePort(there)
}

// canMovePort has a tap, and a port that goes to another namespace.
func canMovePort(there *os.File) error {
	if err := canLink([]string{"veth"}); err != nil { // in yet another one
		return err
	}
	tap, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	defer unix.Close(tap)
	request, err := unix.NewIfreq("can2")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(tap, unix.TUNSETIFF, request); err != nil {
		return fmt.Errorf("ip tuntap add mode tap: %w", err)
	}
	port, err := netlink.LinkByName("can0")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetNsFd(port, int(there.Fd())); err != nil {
		return fmt.Errorf("ip link set netns: %w", err)
	}
	return onThread(func() error {
		if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		if _, err := netlink.LinkByName("can0"); err != nil {
			return fmt.Errorf("ip link set netns: %w", err)
		}
		return nil
	})
}

// onThread runs work on a thread of its own, which ends with its namespaces.
func onThread(work func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- work()
	}()
	return <-done
}
