package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// unmountLazily has the kubelet, which unmounts volumes by the program umount, unmount those that gVisor takes for
// busy: each that was passed on to a pod by mount propagation (mountPropagation: HostToContainer of a folder above),
// for as long as that pod is there. gVisor expects one reference too many of such a copy (pkg/sentry/vfs,
// arePropMountsBusy); a pod whose volumes are never unmounted would never be gone. The program lies in a folder that
// is first on PATH.
func unmountLazily(folder string) error {
	program, err := exec.LookPath("umount")
	if err != nil {
		return err
	}
	if filepath.Dir(program) == folder {
		return nil
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	script := fmt.Sprintf("#!/bin/sh\nif said=$(%[1]q \"$@\" 2>&1); then exit 0; fi\n"+
		"case $said in\n*busy*) exec %[1]q -l \"$@\" ;;\nesac\necho \"$said\" >&2\nexit 32\n", program)
	if err := os.WriteFile(filepath.Join(folder, "umount"), []byte(script), 0o755); err != nil {
		return err
	}
	return os.Setenv("PATH", folder+string(filepath.ListSeparator)+os.Getenv("PATH"))
}
