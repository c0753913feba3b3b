package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// bundleWith is a bundle with a spec as containerd writes it.
func bundleWith(t *testing.T, folder, id, kind, more string) string {
	t.Helper()
	bundle := filepath.Join(folder, id)
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		t.Fatal(err)
	}
	content := `{"root":{"path":"rootfs"},"annotations":{"io.kubernetes.cri.container-type":"` + kind +
		`","io.kubernetes.cri.sandbox-id":"pod"},"linux":{"seccomp":{}` + more + `}}`
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return bundle
}

// shownIn rewrites a bundle's spec, and returns what is shown by files, and what is left of the spec.
func shownIn(t *testing.T, bundle string) (map[string]string, map[string]any) {
	t.Helper()
	rules := []Rule{{Sysctls: "show"}}
	if err := rewrite(bundle, rules, "/the/wrapper"); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var spec map[string]any
	if err := json.Unmarshal(content, &spec); err != nil {
		t.Fatal(err)
	}
	shown := map[string]string{}
	upper := filepath.Join(bundle, "sysctls", "upper")
	_ = filepath.Walk(upper, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			value, _ := os.ReadFile(path)
			shown[strings.TrimPrefix(path, upper+"/")] = string(value)
		}
		return nil
	})
	return shown, spec
}

func TestShowsSysctlsToEachContainerOfAPod(t *testing.T) {
	folder := t.TempDir()
	asked := `,"sysctl":{"kernel.shm_rmid_forced":"1","net.ipv4.conf.eth0/1.forwarding":"0","net/ipv4/tcp_rmem":"1 2 3"}`
	want := map[string]string{
		"kernel/shm_rmid_forced": "1\n", "net/ipv4/conf/eth0.1/forwarding": "0\n", "net/ipv4/tcp_rmem": "1 2 3\n",
	}
	for _, bundle := range []string{
		bundleWith(t, folder, "pod", "sandbox", asked), bundleWith(t, folder, "container", "container", ""),
	} {
		shown, spec := shownIn(t, bundle)
		if !reflect.DeepEqual(shown, want) {
			t.Errorf("%s is shown %v", bundle, shown)
		}
		if linux := spec["linux"]; !reflect.DeepEqual(linux, map[string]any{"seccomp": map[string]any{}}) {
			t.Errorf("the spec has %v", linux)
		}
		hooks := map[string]any{"createContainer": []any{map[string]any{
			"path": "/the/wrapper", "args": []any{showName, bundle + "/rootfs", bundle + "/sysctls"},
		}}}
		if !reflect.DeepEqual(spec["hooks"], hooks) {
			t.Errorf("the hooks are %v", spec["hooks"])
		}
	}
}

func TestShowsNothingWhereNothingIsAsked(t *testing.T) {
	folder := t.TempDir()
	for _, bundle := range []string{
		bundleWith(t, folder, "pod", "sandbox", ""), bundleWith(t, folder, "container", "container", ""),
	} {
		before, _ := os.ReadFile(filepath.Join(bundle, "config.json"))
		shownIn(t, bundle)
		if after, _ := os.ReadFile(filepath.Join(bundle, "config.json")); string(after) != string(before) {
			t.Errorf("the spec has become %s", after)
		}
	}
}

func TestShowRefusesWhatIsNoSysctl(t *testing.T) {
	bundle := bundleWith(t, t.TempDir(), "pod", "sandbox", `,"sysctl":{"//etc/passwd":"1"}`)
	err := rewrite(bundle, []Rule{{Sysctls: "show"}}, "/w")
	if err == nil || !strings.Contains(err.Error(), "//etc/passwd") {
		t.Errorf("it took a path: %v", err)
	}
}
