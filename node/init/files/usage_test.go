package files

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestUsage(t *testing.T) {
	mounted := mountTmpfs(t, "size=8m")
	folder := filepath.Dir(mounted)
	at := func(name string) string { return filepath.Join(folder, name) }
	content := make([]byte, 1<<20)
	must(t, os.MkdirAll(at("images/layers"), 0o755), os.Mkdir(at("other"), 0o755),
		os.WriteFile(at("images/layers/one"), content, 0o600), os.WriteFile(at("other/two"), content, 0o600),
		os.Link(at("images/layers/one"), at("images/again")), os.Link(at("images/layers/one"), at("other/again")),
		os.Symlink(at("images"), at("link")), unix.Mkfifo(at("fifo"), 0o600),
		os.WriteFile(at("imagesX"), content, 0o600), os.WriteFile(at("sparse"), nil, 0o600),
		os.Truncate(at("sparse"), 1<<40),
		os.WriteFile(filepath.Join(mounted, "three"), make([]byte, 2<<20), 0o600))
	var sparse unix.Stat_t
	must(t, unix.Stat(at("sparse"), &sparse))
	if sparse.Blocks > 0 { // gVisor's file systems in memory know of no holes
		must(t, os.Remove(at("sparse")))
	}
	folders := []string{folder, at("images"), mounted, at("none"), at("link")}
	usage, err := Measure{Folders: folders, Seconds: 60}.Run()
	must(t, err)
	// Folders take some blocks of their own, and each file is counted once for a folder.
	const some = 256 << 10
	for name, want := range map[string]int64{
		folder: 3 << 20, at("images"): 1 << 20, mounted: 2 << 20, at("none"): 0, at("link"): 0,
	} {
		if got, told := usage.Used[name]; !told || got < want || got > want+some {
			t.Errorf("%s: %d bytes, %v, want about %d", name, got, told, want)
		}
	}
	var disk unix.Statfs_t
	must(t, unix.Statfs(folder, &disk))
	if usage.Size != int64(disk.Blocks)*disk.Bsize || usage.Free <= 0 || usage.Free > usage.Size || !usage.Whole {
		t.Errorf("got %+v of %+v", usage, disk)
	}
}

// What takes too long is told as far as it was seen.
func TestUsageInTime(t *testing.T) {
	usage := Usage{Used: map[string]int64{}, Whole: true}
	m := newMeter(t, &usage)
	folder := t.TempDir()
	m.walk(folder, []string{folder})
	if usage.Whole || usage.Used[folder] != 0 {
		t.Errorf("got %+v", usage)
	}
}

func newMeter(t *testing.T, usage *Usage) *meter {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return &meter{ctx: ctx, usage: usage, seen: map[counted]bool{}}
}

func TestUsageRefusesItsInput(t *testing.T) {
	for words, m := range map[string]Measure{
		"one at least is needed":          {Seconds: 1},
		"seconds 0: 1 to 60 is allowed":   {Folders: []string{"/"}},
		"seconds 61: 1 to 60 is allowed":  {Folders: []string{"/"}, Seconds: 61},
		`path "var": an absolute path is`: {Folders: []string{"var"}, Seconds: 1},
		"no such file or directory":       {Folders: []string{"/none"}, Seconds: 1},
	} {
		_, err := m.Run()
		refused(t, err, words)
	}
}
