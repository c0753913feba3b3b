package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/service"

	"golang.org/x/sys/unix"
)

// needRunsc tells how runsc is called. RUNSC names the program; RUNSC_PLATFORM the platform, systrap where it is not
// set.
func needRunsc(t *testing.T) []string {
	t.Helper()
	runsc := os.Getenv("RUNSC")
	if runsc == "" {
		t.Skip("runs where RUNSC names a runsc binary")
	}
	platform := os.Getenv("RUNSC_PLATFORM")
	if platform == "" {
		platform = "systrap"
	}
	return []string{runsc, "--platform=" + platform, "--network=none", "--ignore-cgroups"}
}

// build has the go command build a program that needs nothing but a kernel.
func build(t *testing.T, arguments ...string) {
	t.Helper()
	command := exec.Command("go", arguments...)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("go %q: %v\n%s", arguments, err, output)
	}
}

// TestInGVisor runs every other test of this module inside gVisor: what a kernel does with a FIFO, a mount or a lock is
// its own.
func TestInGVisor(t *testing.T) {
	runsc := needRunsc(t)
	output, err := exec.Command("go", "list", "-f", "{{if .TestGoFiles}}{{.ImportPath}}{{end}}", "./...").Output()
	must(t, err)
	packages := strings.Fields(string(output))
	if len(packages) < 8 {
		t.Fatalf("only %q have tests", packages)
	}
	folder := t.TempDir()
	for _, name := range packages {
		t.Run(filepath.Base(name), func(t *testing.T) {
			if strings.HasSuffix(name, "/probe") {
				t.Skip("its tests are about what Linux can do")
			}
			binary := filepath.Join(folder, filepath.Base(name)+".test")
			build(t, "test", "-c", "-o", binary, name)
			command := exec.Command(runsc[0], append(slices.Clone(runsc[1:]),
				"do", "-force-overlay", "--", binary, "-test.v", "-test.timeout=5m")...)
			command.Env = slices.DeleteFunc(
				os.Environ(),
				func(entry string) bool { return strings.HasPrefix(entry, "RUNSC=") },
			)
			var said bytes.Buffer // a pipe: runsc writes to a file from its beginning
			command.Stdout, command.Stderr = &said, &said
			err := command.Run()
			t.Log(strings.ReplaceAll(said.String(), "--- ", "in gVisor: "))
			if err != nil {
				t.Errorf("the tests failed in gVisor: %v", err)
			}
			if !strings.Contains(said.String(), "--- PASS: Test") {
				t.Error("none of them passed in gVisor")
			}
		})
	}
}

// sandbox is a managed one, as the host starts it.
type sandbox struct {
	t     *testing.T
	runsc []string // with the flags that every command has
	// bundle is the host's folder; the sandbox's root is in it, so a file's path on the host can be told.
	bundle string
}

const sandboxName = "init-test"

func startSandbox(t *testing.T) *sandbox {
	t.Helper()
	runsc := needRunsc(t)
	if os.Geteuid() != 0 {
		t.Skip("it takes root")
	}
	bundle := t.TempDir()
	root := filepath.Join(bundle, "root")
	// runsc looks for its root and its bundle by their paths, which are deeper than a socket's may be.
	state, err := os.MkdirTemp("/tmp", "runsc-")
	must(t, err)
	s := &sandbox{t, append(runsc, "--overlay2=none", "--root="+state), bundle}
	for _, folder := range []string{"bin", "dev", "etc", "proc", "run", "sys", "tmp", "var/lib"} {
		must(t, os.MkdirAll(filepath.Join(root, folder), 0o755))
	}
	build(t, "build", "-o", filepath.Join(root, "bin/sandbox-init"), ".")
	build(t, "test", "-c", "-o", filepath.Join(root, "bin/helper"), ".")
	busybox, err := os.ReadFile("/bin/busybox")
	must(t, err, os.WriteFile(filepath.Join(root, "bin/busybox"), busybox, 0o755))
	t.Cleanup(func() {
		s.end()
		exec.Command("umount", filepath.Join(state, "null-netns")).Run() // runsc's own
		os.RemoveAll(state)
	})
	s.start()
	return s
}

func (s *sandbox) start() {
	s.t.Helper()
	type mount struct {
		Destination string `json:"destination"`
		Type        string `json:"type"`
		Source      string `json:"source"`
	}
	all := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_MKNOD", "CAP_SYS_ADMIN"}
	spec := map[string]any{
		"ociVersion": "1.1.0",
		"process": map[string]any{
			"user": map[string]int{"uid": 0, "gid": 0},
			"args": []string{"/bin/sandbox-init", "run"}, "env": []string{"PATH=/bin"}, "cwd": "/",
			"capabilities": map[string][]string{
				"bounding":    all,
				"effective":   all,
				"permitted":   all,
				"inheritable": all,
			},
		},
		"root": map[string]any{"path": filepath.Join(s.bundle, "root"), "readonly": false},
		"mounts": []mount{
			{
				"/proc",
				"proc",
				"proc",
			}, {"/sys", "sysfs", "sysfs"}, {"/dev", "tmpfs", "tmpfs"}, {"/run", "tmpfs", "tmpfs"},
		},
		"linux": map[string]any{"namespaces": []map[string]string{{"type": "pid"}, {"type": "ipc"}, {"type": "mount"}}},
	}
	must(s.t, files.WriteJSON(filepath.Join(s.bundle, "config.json"), 0o600, spec))
	log, err := os.OpenFile(filepath.Join(s.bundle, "log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	must(s.t, err)
	defer log.Close()
	command := s.command("run", "--detach", "--bundle="+s.bundle, sandboxName)
	command.Stdout, command.Stderr = log, log // which the sandbox has as long as it lives
	if err := command.Run(); err != nil {
		s.t.Fatalf("%v\n%s", err, contentOf(log.Name()))
	}
	await(s.t, "sandbox-init answers", func() bool { return s.exec("", "service", "status").code == 0 }, log.Name())
}

// end kills it with all that runs in it.
func (s *sandbox) end() { s.command("delete", "--force", sandboxName).Run() }

func (s *sandbox) command(arguments ...string) *exec.Cmd {
	return exec.Command(s.runsc[0], append(slices.Clone(s.runsc[1:]), arguments...)...)
}

// exec runs sandbox-init in it, as the host does.
func (s *sandbox) exec(input string, arguments ...string) result {
	s.t.Helper()
	command := s.command(append([]string{"exec", sandboxName, "/bin/sandbox-init"}, arguments...)...)
	command.Stdin = strings.NewReader(input)
	return finish(s.t, command)
}

// says is exec for what must end well.
func (s *sandbox) says(input string, arguments ...string) string {
	s.t.Helper()
	got := s.exec(input, arguments...)
	if got.code != 0 || got.stderr != "" {
		s.t.Errorf("%q: %+v", arguments, got)
	}
	return got.stdout
}

// shell runs a script in it, as somebody who is root there does.
func (s *sandbox) shell(script string) {
	s.t.Helper()
	if output, err := s.command("exec", sandboxName, "/bin/busybox", "sh", "-c", script).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v\n%s", script, err, output)
	}
}

// onHost is a file of the sandbox by the host's path. Only these tests look at one so.
func (s *sandbox) onHost(path string) string { return filepath.Join(s.bundle, "root", path) }

func put(t *testing.T, path, mode, content string) string {
	t.Helper()
	return encode(t, []files.File{{Path: path, Mode: mode, Content: []byte(content)}})
}

// A root in the sandbox plants links to the host's files, whose paths are others in there, and whatever else could do
// harm to somebody who opened it. Nothing of the host's is read or written, and nothing waited for.
func TestNothingPlantedIsFollowedOutOfTheSandbox(t *testing.T) {
	s := startSandbox(t)
	victims := t.TempDir()
	victim := filepath.Join(victims, "file")
	must(t, os.WriteFile(victim, []byte("the host's"), 0o644), os.Mkdir(filepath.Join(victims, "folder"), 0o755))
	s.shell(fmt.Sprintf(`set -e; cd /etc; alias b=/bin/busybox
		b ln -s %[1]s/file link; b ln -s %[1]s/folder folder-link; b ln -s loop loop
		b mkfifo fifo; b mkdir folder; b mknod /dev/device c 1 3; echo x > file; b ln file hard`, victims))

	absent := func(path string) result {
		why := fmt.Sprintf("sandbox-init: there is no %[1]s (open %[1]s: no such file or directory)\n", path)
		return result{3, "", why}
	}
	for name, want := range map[string]result{
		"link":             absent("/etc/link"),
		"folder-link/file": absent("/etc/folder-link/file"),
		"fifo":             {1, "", "sandbox-init: /etc/fifo is a FIFO and no regular file\n"},
		"folder":           {1, "", "sandbox-init: /etc/folder is a folder and no regular file\n"},
		"../dev/device":    {1, "", "sandbox-init: /dev/device is a device and no regular file\n"},
		"loop":             {1, "", "sandbox-init: open /etc/loop: too many levels of symbolic links\n"},
		"file":             {0, "x\n", ""},
		"hard":             {0, "x\n", ""},
	} {
		if got := s.exec("", "files", "get", filepath.Join("/etc", name)); got != want {
			t.Errorf("get %s: %+v, want %+v", name, got, want)
		}
	}
	for _, name := range []string{"link", "fifo", "loop", "hard", "new"} {
		s.says(put(t, "/etc/"+name, "640", "new "+name), "files", "put")
		info, err := os.Lstat(s.onHost("/etc/" + name))
		if err != nil || info.Mode() != 0o640 || contentOf(s.onHost("/etc/"+name)) != "new "+name {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	s.says(put(t, "/dev/device", "640", "new"), "files", "put")
	if got := s.says("", "files", "get", "/dev/device"); got != "new" {
		t.Errorf("where the device was is %q", got)
	}
	got := s.exec(put(t, "/etc/folder-link/file", "600", "x"), "files", "put")
	want := "/etc/folder-link is a link that leads nowhere (to " + victims +
		"/folder) where a folder is needed; remove it\n"
	if got.code != 1 || !strings.HasSuffix(got.stderr, want) {
		t.Errorf("a link to a folder of the host's: %+v", got)
	}
	// The same folder is there in the sandbox: that is where the link leads.
	s.shell("/bin/busybox mkdir -p " + victims + "/folder")
	s.says(put(t, "/etc/folder-link/file", "600", "inside"), "files", "put")
	if got := s.says("", "files", "get", victims+"/folder/file"); got != "inside" {
		t.Errorf("it holds %q", got)
	}
	s.says(encode(t, []string{"/etc/folder-link", "/etc/folder", victims}), "files", "remove")
	if contentOf(victim) != "the host's" {
		t.Errorf("the host's file holds %q", contentOf(victim))
	}
	if entries, err := os.ReadDir(filepath.Join(victims, "folder")); err != nil || len(entries) != 0 {
		t.Errorf("the host's folder has %v, %v", entries, err)
	}
}

// gVisor reports to a watcher what is written inside the sandbox, which it does not of what the host writes below it.
func TestWatcherSeesWhatIsPut(t *testing.T) {
	s := startSandbox(t)
	s.shell("/bin/busybox mkdir -p /etc/cni/net.d")
	watcher := service.Service{
		Name: "watcher", Command: []string{"/bin/helper", "/etc/cni/net.d"}, Env: []string{asWatcher + "=1"},
		Log: "/var/lib/watcher.log", StopSeconds: 5,
	}
	s.says(encode(t, watcher), "service", "put")
	log := func() string { return s.exec("", "files", "get", watcher.Log).stdout }
	await(t, "it watches", func() bool { return strings.Contains(log(), "watching\n") })
	s.says(put(t, "/etc/cni/net.d/10-bridge.conflist", "644", "{}"), "files", "put")
	await(t, "it sees the rename", func() bool { return strings.Contains(log(), "moved to 10-bridge.conflist\n") })
}

// asWatcher has the test's program tell what comes into the folder that is its argument.
const asWatcher = "SANDBOX_INIT_TEST_AS_WATCHER"

func watch(folder string) error {
	notify, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	if _, err := unix.InotifyAddWatch(notify, folder, unix.IN_MOVED_TO); err != nil {
		return err
	}
	fmt.Println("watching")
	for buffer := make([]byte, 4096); ; {
		count, err := unix.Read(notify, buffer)
		if err != nil {
			return err
		}
		name, _, _ := bytes.Cut(buffer[unix.SizeofInotifyEvent:count], []byte{0})
		fmt.Printf("moved to %s\n", name)
	}
}

// A sandbox that was killed is started again with the same root, and has what it had.
func TestNextLifeOfASandbox(t *testing.T) {
	s := startSandbox(t)
	log := "/var/lib/counter.log"
	counter := service.Service{
		Name: "counter", Env: []string{"PATH=/bin"}, Log: log, StopSeconds: 5,
		Command: []string{
			"/bin/busybox",
			"sh",
			"-c",
			"echo started; echo \"{\\\"pid\\\":$$,\\\"ready\\\":1}\" > /run/stages.json; exec /bin/busybox sleep 1000",
		},
	}
	facade := `{"settings":[],"files":[{"path":"/run/facade","content":"x"}],"mounts":[],` +
		`"nodes":[{"path":"/dev/kmsg","major":1,"minor":3}]}`
	boot := `{"folders":[{"path":"/var/tmp","mode":"1777"}],"files":[],"links":[{"path":"/var/run","target":"../run"}]}`
	reached := func() bool {
		t.Helper()
		var outcome service.Outcome
		output := s.says(
			`{"file":"/run/stages.json","key":"ready","seconds":60,"attempts":3}`,
			"service",
			"await",
			"counter",
		)
		must(t, json.Unmarshal([]byte(output), &outcome))
		return outcome.Reached
	}
	if output := s.says(boot, "boot"); output != "{\"changed\":[\"/var/run\",\"/var/tmp\"]}\n" {
		t.Errorf("boot: %q", output)
	}
	s.says(facade, "facade")
	s.says(encode(t, counter), "service", "put")
	if !reached() {
		t.Error("it is not reached in the first life")
	}
	s.end()
	s.start()
	if output := s.says("", "boot", "--replay"); output != "{\"facade\":true,\"services\":[\"counter\"]}\n" {
		t.Errorf("replay: %q", output)
	}
	if !reached() {
		t.Error("it is not reached in the second life")
	}
	if started := strings.Count(s.says("", "files", "get", log), "started\n"); started != 2 {
		t.Errorf("it was started %d times", started)
	}
	if got := s.says("", "files", "get", "/run/facade"); got != "x" {
		t.Errorf("the facade holds %q", got)
	}
}

// Not a test of anything: it tells how long it takes the host to write a file.
func TestTimeOfAnExec(t *testing.T) {
	s := startSandbox(t)
	var took []time.Duration
	for i := range 20 {
		begin := time.Now()
		s.says(put(t, "/etc/containerd/config.toml", "644", fmt.Sprint(i)), "files", "put")
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	if got := s.says("", "files", "get", "/etc/containerd/config.toml"); got != "19" {
		t.Errorf("it holds %q", got)
	}
	t.Logf(
		"`runsc exec … sandbox-init files put`: median %s, from %s to %s",
		took[len(took)/2],
		took[0],
		took[len(took)-1],
	)
}
