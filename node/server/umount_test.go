package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestUnmountsWhatIsBusyLazily(t *testing.T) {
	own, folder := t.TempDir(), filepath.Join(t.TempDir(), "bin")
	called := filepath.Join(own, "called")
	stub := "#!/bin/sh\necho \"$@\" >> " + called + "\ncase \"$*\" in\n'-l busy' | free) exit 0 ;;\n" +
		"busy) echo \"umount: can't unmount busy: Device or resource busy\" >&2 ;;\n" +
		"*) echo \"umount: $1: not mounted\" >&2 ;;\nesac\nexit 1\n"
	if err := os.WriteFile(filepath.Join(own, "umount"), []byte(stub), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", own+":"+os.Getenv("PATH"))
	for range 2 { // at each start
		if err := unmountLazily(folder); err != nil {
			t.Fatal(err)
		}
	}
	for target, want := range map[string]string{"free": "", "busy": "", "none": "umount: none: not mounted\n"} {
		output, err := exec.Command("umount", target).CombinedOutput()
		if string(output) != want || (err != nil) != (want != "") {
			t.Errorf("umount %s: %q, %v", target, output, err)
		}
	}
}
