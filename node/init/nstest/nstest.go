// Package nstest lets the tests of a package mount what they like, and have a network of their own, where that takes
// root.
package nstest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// private tells the test program, started anew, that it has mounts of its own, or the reason why not.
const private = "SANDBOX_INIT_TEST_PRIVATE"

// Enter has the test program run in a mount namespace of its own, whose mounts nobody else sees, and in others of these
// (CLONE_NEWNET). It is called first of all.
func Enter(others ...int) {
	if os.Getenv(private) != "" {
		return
	}
	os.Setenv(private, unshare(others))
	// Only exec moves all of a process into the namespace that one of its threads has entered.
	fmt.Fprintln(os.Stderr, unix.Exec("/proc/self/exe", os.Args, os.Environ()))
	os.Exit(1)
}

func unshare(others []int) string {
	runtime.LockOSThread()
	for _, other := range others {
		if err := unix.Unshare(other); err != nil {
			return fmt.Sprintf("a namespace of its own is needed, which takes root: %v", err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Sprintf("a mount namespace of its own is needed, which takes root: %v", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Sprintf("mounts can't be made private: %v", err)
	}
	return "yes"
}

// Need skips a test where nothing can be mounted.
func Need(t *testing.T) {
	t.Helper()
	if reason := os.Getenv(private); reason != "yes" {
		t.Skip(reason)
	}
}

// Tmpfs mounts a file system on a folder for the time of a test.
func Tmpfs(t *testing.T, folder, options string) {
	t.Helper()
	Need(t)
	if err := unix.Mount("nstest", folder, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(folder, unix.MNT_DETACH) })
}
