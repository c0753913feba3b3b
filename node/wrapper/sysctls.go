package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
)

const (
	// showName is this program's own name when a runtime runs it as a hook.
	showName = "show-sysctls"
	// What is kept of them in a container's bundle: what was asked for, and the files that are shown.
	askedFile   = "sysctls.json"
	shownFolder = "sysctls"
	// procMagic is what statfs(2) tells of a procfs.
	procMagic = 0x9fa0
)

// showSysctls takes a container's sysctls out of its spec, where the kernel has none of a pod's own, and has them shown
// to it instead: a hook mounts an overlay over the container's /proc/sys whose files read as the pod has asked.
// containerd gives the sysctls to the container that holds a pod's namespaces; the pod's others find them in that one's
// bundle, which lies beside theirs.
func showSysctls(spec []byte, bundle, self string) ([]byte, error) {
	asked := map[string]string{}
	if given := gjson.GetBytes(spec, "linux.sysctl"); given.Exists() {
		if err := json.Unmarshal([]byte(given.Raw), &asked); err != nil {
			return nil, fmt.Errorf("linux.sysctl: %w", err)
		}
		var err error
		if spec, err = sjson.DeleteBytes(spec, "linux.sysctl"); err != nil {
			return nil, err
		}
	}
	bundle, err := filepath.Abs(bundle)
	if err != nil {
		return nil, err
	}
	annotation := func(name string) string {
		return gjson.GetBytes(spec, `annotations.io\.kubernetes\.cri\.`+name).String()
	}
	if annotation("container-type") == "container" {
		pod := filepath.Join(filepath.Dir(bundle), filepath.Base(annotation("sandbox-id")))
		content, err := os.ReadFile(filepath.Join(pod, askedFile))
		if err == nil {
			err = json.Unmarshal(content, &asked)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("the pod's sysctls: %w", err)
		}
	}
	if len(asked) == 0 {
		return spec, nil
	}
	content, err := json.Marshal(asked)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(bundle, askedFile), content, 0o600); err != nil {
		return nil, err
	}
	folder := filepath.Join(bundle, shownFolder)
	if err := writeShown(folder, asked); err != nil {
		return nil, err
	}
	root := gjson.GetBytes(spec, "root.path").String()
	if !filepath.IsAbs(root) {
		root = filepath.Join(bundle, root)
	}
	hook := map[string]any{"path": self, "args": []string{showName, root, folder}}
	return sjson.SetBytes(spec, "hooks.createContainer.-1", hook)
}

// writeShown writes the files that are shown: the layer above the kernel's own.
func writeShown(folder string, asked map[string]string) error {
	for _, part := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(folder, part), 0o755); err != nil {
			return err
		}
	}
	for name, value := range asked {
		// Of the two separators the first one that is there tells which it is: sysctl(8), and so runc and the kubelet.
		path := name
		if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
			path = strings.NewReplacer(".", "/", "/", ".").Replace(name)
		}
		file := filepath.Join(folder, "upper", path)
		if !filepath.IsLocal(path) {
			return fmt.Errorf("the sysctl %q is no name below /proc/sys", name)
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// show is the hook: it runs in the container's mount namespace, before the container's root is its own.
func show(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%s takes the container's root and the folder of what is shown", showName)
	}
	root, folder := args[0], args[1]
	var fs syscall.Statfs_t
	if err := syscall.Statfs(filepath.Join(root, "proc"), &fs); err != nil || fs.Type != procMagic {
		return err // a container without /proc
	}
	target := filepath.Join(root, "proc/sys")
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", target, folder, folder)
	if err := syscall.Mount("overlay", target, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount -t overlay -o %s %s: %w", options, target, err)
	}
	return nil
}
