package ready

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	switch os.Getenv("READY_TEST") {
	case "well":
		teller := Open()
		teller.Tell(nil)
		teller.Tell(errors.New("too late"))
	case "badly":
		Open().Tell(errors.New("two lines\nof \"words\""))
	case "child":
		teller := Open()
		exec.Command("/bin/sh", "-c", "echo nonsense >&3").Run()
		teller.Tell(nil)
	case "garbage":
		os.NewFile(descriptor, "").WriteString("garbage\n")
	case "silently":
	default:
		os.Exit(m.Run())
	}
}

func run(t *testing.T, how string, pipe bool) (rest string, said error) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"READY_TEST=" + how}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if pipe {
		cmd.ExtraFiles = []*os.File{w}
	}
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	w.Close()
	said = Await(r)
	return string(output), said
}

func TestWhatIsSaidIsHeard(t *testing.T) {
	for how, want := range map[string]string{
		"well": "<nil>", "child": "<nil>", "badly": "two lines\nof \"words\"", "silently": "it ended without a word",
		"garbage": `it said "garbage`,
	} {
		_, said := run(t, how, true)
		got := "<nil>"
		if said != nil {
			got = said.Error()
		}
		if !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q, want %q", how, got, want)
		}
	}
}

func TestNobodyIsTold(t *testing.T) {
	for _, how := range []string{"well", "badly"} {
		if output, _ := run(t, how, false); output != "" {
			t.Errorf("%s: %q", how, output)
		}
	}
}
