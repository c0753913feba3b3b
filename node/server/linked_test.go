package main

import (
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/util/workqueue"
)

// What a main package of upstream's imports for its effect alone is in this program too.
func TestLinksWhatUpstreamLinks(t *testing.T) {
	linked := goList(t, "-deps", ".")
	for _, program := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"} {
		files := goList(t, "-f", `{{$dir := .Dir}}{{range .GoFiles}}{{$dir}}/{{.}}{{"\n"}}{{end}}`,
			"k8s.io/kubernetes/cmd/"+program)
		for _, file := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, imported := range parsed.Imports {
				path, _ := strconv.Unquote(imported.Path.Value)
				if imported.Name != nil && imported.Name.Name == "_" && !slices.Contains(linked, path) {
					t.Errorf("%s links %s (%s), and this program does not", program, path, filepath.Base(file))
				}
			}
		}
	}
}

// A queue with a name would have metrics, and a goroutine that keeps them.
func TestWorkQueuesSleep(t *testing.T) {
	queue := workqueue.NewTypedWithConfig(workqueue.TypedQueueConfig[string]{Name: "sleeper"})
	defer queue.ShutDown()
	stacks := make([]byte, 1<<20)
	if all := string(stacks[:runtime.Stack(stacks, true)]); strings.Contains(all, "updateUnfinishedWorkLoop") {
		t.Errorf("a work queue wakes twice a second:\n%s", all)
	}
}

func goList(t *testing.T, args ...string) []string {
	t.Helper()
	output, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	return strings.Fields(string(output))
}

func TestKnowsTimeZones(t *testing.T) {
	t.Setenv("ZONEINFO", filepath.Join(t.TempDir(), "none"))
	if _, err := time.LoadLocation("Europe/Vienna"); err != nil {
		t.Error(err)
	}
}
