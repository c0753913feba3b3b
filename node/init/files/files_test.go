package files

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// An umask that leaves others nothing: the modes that are asked for count.
func TestMain(m *testing.M) {
	unix.Umask(0o077)
	os.Exit(m.Run())
}

func read(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(content)
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// refused wants an error that says these.
func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("not refused, and %q were due", words)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("refused by %q, which does not say %q", err, word)
		}
	}
}

// plant makes one of everything that somebody could put in place of a file, and tells how each is called.
func plant(t *testing.T, folder string) map[string]string {
	t.Helper()
	at := func(name string) string { return filepath.Join(folder, name) }
	must(t,
		os.Mkdir(at("folder"), 0o755),
		os.WriteFile(at("folder/inner"), []byte("inner"), 0o600),
		unix.Mkfifo(at("fifo"), 0o666),
		os.Symlink("victim", at("link")),
		os.WriteFile(at("victim"), []byte("the victim's"), 0o600),
		os.Symlink("nowhere", at("dangling")),
		os.Symlink("loop", at("loop")),
		os.Link(at("victim"), at("hard")),
	)
	listener, err := net.Listen("unix", at("socket"))
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	kinds := map[string]string{"folder": "a folder", "fifo": "a FIFO", "socket": "a socket"}
	if err := unix.Mknod(at("device"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err == nil {
		kinds["device"] = "a device"
	}
	return kinds
}

// left names what is in a folder, so that a temporary file that was forgotten shows.
func left(t *testing.T, folder string) []string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	must(t, err)
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func TestPut(t *testing.T) {
	folder := t.TempDir()
	var list []File
	for i, mode := range []string{"600", "0644", "444", "755", "666", "0"} {
		path := filepath.Join(folder, "new", "folders", mode)
		list = append(list, File{path, mode, []byte(fmt.Sprint("content ", i))})
	}
	list = append(list, File{filepath.Join(folder, "empty"), "600", []byte{}})
	for _, when := range []string{"at first", "again"} {
		must(t, Put(list))
		for _, file := range list {
			info, err := os.Stat(file.Path)
			must(t, err)
			mode, err := Mode(file.Mode, 0o777)
			must(t, err)
			if info.Mode() != fs.FileMode(mode) || read(file.Path) != string(file.Content) {
				t.Errorf("%s: %s has mode %v and holds %q", when, file.Path, info.Mode(), read(file.Path))
			}
		}
	}
	for _, made := range []string{"new", "new/folders"} {
		if info, err := os.Stat(filepath.Join(folder, made)); err != nil || info.Mode() != fs.ModeDir|0o755 {
			t.Errorf("%s: %v, %v", made, info.Mode(), err)
		}
	}
	if names := left(t, filepath.Join(folder, "new/folders")); len(names) != 6 {
		t.Errorf("something was left beside the files: %q", names)
	}
	must(t, Put(nil), Put([]File{}))
}

func TestPutFromJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	content := string([]byte{0, 0xff, '\n', 'x'})
	encoded, err := json.Marshal([]File{{path, "600", []byte(content)}})
	must(t, err)
	if want := fmt.Sprintf(`[{"path":%q,"mode":"600","content":"AP8KeA=="}]`, path); string(encoded) != want {
		t.Errorf("got %s, want %s", encoded, want)
	}
	var list []File
	must(t, json.Unmarshal(encoded, &list), Put(list))
	if read(path) != content {
		t.Errorf("got %q", read(path))
	}
}

// Whatever lies where a file is due makes way, and what it led to stays as it was; only a folder is not removed for a
// file.
func TestPutReplacesWhatIsInTheWay(t *testing.T) {
	folder := t.TempDir()
	plant(t, folder)
	names := slices.DeleteFunc(left(t, folder), func(name string) bool { return name == "folder" || name == "victim" })
	if len(names) < 6 {
		t.Fatalf("only %q were planted", names)
	}
	for _, name := range names {
		path := filepath.Join(folder, name)
		must(t, Write(path, 0o640, []byte("new")))
		if info, err := os.Lstat(path); err != nil || info.Mode() != 0o640 || read(path) != "new" {
			t.Errorf("%s: %v, %v, %q", name, info.Mode(), err, read(path))
		}
	}
	if read(filepath.Join(folder, "victim")) != "the victim's" {
		t.Error("a link, or a hard link, was written through")
	}
	refused(t, Write(filepath.Join(folder, "folder"), 0o600, []byte{}),
		folder+"/folder is a folder where a file is to be written; remove it")
	if read(filepath.Join(folder, "folder/inner")) != "inner" {
		t.Error("the folder was touched")
	}
}

func TestPutBelowWhatIsNoFolder(t *testing.T) {
	folder := t.TempDir()
	kinds := plant(t, folder)
	must(
		t,
		os.Symlink("other-loop", filepath.Join(folder, "loop-2")),
		os.Symlink("loop-2", filepath.Join(folder, "other-loop")),
	)
	delete(kinds, "folder")
	kinds["victim"] = "a regular file"
	kinds["link"] = "a regular file"
	kinds["dangling"] = "a link that leads nowhere (to nowhere)"
	kinds["loop"] = "a link that leads nowhere (to loop)"
	kinds["loop-2"] = "a link that leads nowhere (to other-loop)"
	for name, kind := range kinds {
		for _, below := range []string{"file", "deep/er/file"} {
			path := filepath.Join(folder, name, below)
			refused(
				t,
				Write(path, 0o600, []byte("x")),
				path+" cannot be written: ",
				filepath.Join(folder, name)+" is "+kind+" where a folder is needed; remove it",
			)
		}
	}
	// A link to a folder is a folder.
	must(
		t,
		os.Symlink("folder", filepath.Join(folder, "to-folder")),
		Write(filepath.Join(folder, "to-folder/a/file"), 0o600, []byte("x")),
	)
	if read(filepath.Join(folder, "folder/a/file")) != "x" {
		t.Error("it is not where the link leads")
	}
}

// One that cannot be written keeps all others from being changed.
func TestPutIsAllOrNothing(t *testing.T) {
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	must(t, Write(at("first"), 0o600, []byte("before")), os.Mkdir(at("taken"), 0o755))
	err := Put(
		[]File{
			{at("first"), "600", []byte("after")},
			{at("taken"), "600", []byte{}},
			{at("first/below"), "600", []byte{}},
		},
	)
	refused(t, err, at("taken")+" is a folder", at("first")+" is a regular file where a folder is needed")
	if read(at("first")) != "before" {
		t.Errorf("it holds %q", read(at("first")))
	}
	if names := left(t, folder); !reflect.DeepEqual(names, []string{"first", "taken"}) {
		t.Errorf("something was left: %q", names)
	}
}

// On a full disk the file that was there stays whole.
func TestPutOnAFullDisk(t *testing.T) {
	folder := mountTmpfs(t, "size=64k")
	path := filepath.Join(folder, "file")
	must(t, Write(path, 0o600, []byte("before")))
	refused(t, Write(path, 0o600, make([]byte, 1<<20)), path+" cannot be written: ", "no space left on device")
	if read(path) != "before" || len(left(t, folder)) != 1 {
		t.Errorf("it holds %q, and there are %q", read(path), left(t, folder))
	}
}

// mountTmpfs mounts a small file system of the test's own.
func mountTmpfs(t *testing.T, options string) string {
	t.Helper()
	folder := filepath.Join(t.TempDir(), "mounted")
	must(t, os.Mkdir(folder, 0o755))
	if err := unix.Mount("files-test", folder, "tmpfs", 0, options); err != nil {
		t.Skip("mounts take root: ", err)
	}
	t.Cleanup(func() { unix.Unmount(folder, unix.MNT_DETACH) })
	return folder
}

func TestPutOverAMount(t *testing.T) {
	folder := t.TempDir()
	source, target := filepath.Join(folder, "source"), filepath.Join(folder, "target")
	must(t, Write(source, 0o600, []byte("source")), Write(target, 0o600, []byte("target")))
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		t.Skip("mounts take root: ", err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	refused(
		t,
		Write(target, 0o600, []byte("new")),
		target+" cannot be replaced, since something is mounted on it; unmount it",
	)
	if read(source) != "source" || len(left(t, folder)) != 2 {
		t.Errorf("the source holds %q, and there are %q", read(source), left(t, folder))
	}
}

func TestPutRefusesItsInput(t *testing.T) {
	folder := t.TempDir()
	err := Put([]File{
		{filepath.Join(folder, "good"), "600", []byte("x")},
		{"relative", "600", []byte{}},
		{folder + "/a/../b", "600", []byte{}},
		{folder + "/slash/", "600", []byte{}},
		{"", "600", []byte{}},
		{folder + "/setuid", "4755", []byte{}},
		{folder + "/mode", "rw", []byte{}},
		{folder + "/none", "", []byte{}},
		{folder + "/minus", "-1", []byte{}},
		{folder + "/nine", "900", []byte{}},
		{folder + "/void", "600", nil},
		{folder + "/good", "600", []byte("y")},
	})
	refused(
		t,
		err,
		`path "relative": an absolute path is needed`,
		`/a/../b": an abs`,
		`slash/": an abs`,
		`path "": an abs`,
		`mode "4755": an octal number from 0 to 777 is needed`,
		`mode "rw"`,
		`mode ""`,
		`mode "-1"`,
		`mode "900"`,
		`void": it has no content`,
		`good": it is there twice`,
	)
	if names := left(t, folder); len(names) != 0 {
		t.Errorf("%q were written all the same", names)
	}
}

func TestGetWhatIsNoFile(t *testing.T) {
	folder := t.TempDir()
	for name, kind := range plant(t, folder) {
		path := filepath.Join(folder, name)
		_, err := Read(path, GetLimit)
		refused(t, err, path+" is "+kind+" and no regular file")
		_, err = Tail(path, 10)
		refused(t, err, path+" is "+kind+" and no regular file")
		if sums, err := Hash([]string{path}); err != nil ||
			sums[path] != (Sum{Problem: path + " is " + kind + " and no regular file"}) {
			t.Errorf("%+v, %v", sums, err)
		}
	}
	for _, name := range []string{"none", "none/below", "victim/below", "dangling"} {
		path := filepath.Join(folder, name)
		if _, err := Read(path, GetLimit); !IsAbsent(err) {
			t.Errorf("%s: %v", path, err)
		}
		if sums, err := Hash([]string{path}); err != nil || sums[path] != (Sum{Absent: true}) {
			t.Errorf("%+v, %v", sums, err)
		}
	}
	if _, err := Read(folder+"/loop", GetLimit); err == nil || IsAbsent(err) ||
		!strings.Contains(err.Error(), "symbolic links") {
		t.Errorf("a loop: %v", err)
	}
	if sum := hash(folder + "/loop"); !strings.Contains(sum.Problem, "symbolic links") || sum.Absent ||
		sum.SHA256 != "" {
		t.Errorf("a loop: %+v", sum)
	}
	for _, path := range []string{"relative", "/a/../b", ""} {
		_, err := Read(path, GetLimit)
		refused(t, err, "an absolute path is needed")
		_, err = Hash([]string{"/etc/hostname", path})
		refused(t, err, "an absolute path is needed")
		_, err = List(path)
		refused(t, err, "an absolute path is needed")
	}
}

func TestGetLimit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	must(t, Write(path, 0o600, []byte("0123456789")))
	for _, c := range []struct {
		tail, limit int64
		content     string
	}{{-1, 10, "0123456789"}, {4, 0, "6789"}, {10, 0, "0123456789"}, {11, 0, "0123456789"}, {0, 0, ""}} {
		content, err := Read(path, c.limit)
		if c.tail >= 0 {
			content, err = Tail(path, c.tail)
		}
		if err != nil || string(content) != c.content {
			t.Errorf("%+v: %q, %v", c, content, err)
		}
	}
	_, err := Read(path, 9)
	refused(t, err, path+" is too large: it has 10 bytes, and at most 9 are read")
	// A file of /proc tells no size.
	if content, err := Read("/proc/self/mounts", GetLimit); err != nil || len(content) == 0 {
		t.Errorf("%q, %v", content, err)
	}
	_, err = Read("/proc/self/mounts", 3)
	refused(t, err, "/proc/self/mounts is too large")
}

func TestLastLines(t *testing.T) {
	folder := t.TempDir()
	plant(t, folder)
	log := filepath.Join(folder, "log")
	must(t, Write(log, 0o600, []byte("1\n2\n3\n\n")))
	for count, want := range map[int]string{1: "3", 2: "2\n3", 3: "1\n2\n3", 4: "1\n2\n3"} {
		if got := LastLines(log, count); got != want {
			t.Errorf("%d: %q", count, got)
		}
	}
	must(t, Write(log, 0o600, []byte(strings.Repeat("x", 1<<20)))) // a single line
	if got := LastLines(log, 2); len(got) != 2*4096 {
		t.Errorf("a long line gives %d bytes", len(got))
	}
	if got, want := LastLines(folder+"/none", 5), "there is no "+folder+"/none"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := LastLines(folder+"/fifo", 5), folder+"/fifo is a FIFO and no regular file"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestHash(t *testing.T) {
	folder := t.TempDir()
	small, large, huge := filepath.Join(folder, "small"), filepath.Join(folder, "large"), filepath.Join(folder, "huge")
	must(t, Write(small, 0o600, []byte("abc")), Write(large, 0o600, []byte{}), Write(huge, 0o600, []byte{}),
		os.Truncate(large, hashLimit), os.Truncate(huge, hashLimit+1))
	sums, err := Hash([]string{small, large, huge, small})
	must(t, err)
	zeros := sha256.New()
	for range hashLimit >> 20 {
		zeros.Write(make([]byte, 1<<20))
	}
	want := map[string]Sum{
		small: {SHA256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}, // FIPS 180-2, B.1
		large: {SHA256: hex.EncodeToString(zeros.Sum(nil))},
		huge:  {Problem: huge + " is too large: it has 67108865 bytes, and at most 67108864 are read"},
	}
	if !maps.Equal(sums, want) {
		t.Errorf("got %+v, want %+v", sums, want)
	}
	encoded, err := json.Marshal(map[string]Sum{"/a": {Absent: true}, "/b": {SHA256: "00"}, "/c": {Problem: "p"}})
	if want := `{"/a":{"absent":true},"/b":{"sha256":"00"},"/c":{"problem":"p"}}`; err != nil ||
		string(encoded) != want {
		t.Errorf("got %s, want %s", encoded, want)
	}
}

func TestChanged(t *testing.T) {
	folder := t.TempDir()
	file := filepath.Join(folder, "file")
	sum := func(content string) string { return sumOf([]byte(content)) }
	if _, err := Changed(file, sum("one"), time.Hour); !IsAbsent(err) {
		t.Errorf("one that went: %v", err)
	}
	if _, err := Changed(file, "", 0); !IsAbsent(err) {
		t.Errorf("one that does not come: %v", err)
	}
	changed := func(known, want string) func() {
		done := make(chan struct{})
		go func() {
			defer close(done)
			if content, err := Changed(file, known, time.Hour); err != nil || string(content) != want {
				t.Errorf("after %q: got %q, %v, want %q", known, content, err, want)
			}
		}()
		return func() { <-done }
	}
	comes := changed("", "one")
	must(t, Write(file, 0o600, []byte("one")))
	comes()
	changed(sum("other"), "one")()
	becomes := changed(sum("one"), "two")
	must(t, Write(file, 0o600, []byte("one")), Write(file, 0o600, []byte("two")))
	becomes()
	if content, err := Changed(file, sum("two"), 0); err != nil || string(content) != "two" {
		t.Errorf("one that does not change: got %q, %v", content, err)
	}
	for name, kind := range plant(t, folder) {
		_, err := Changed(filepath.Join(folder, name), "", time.Hour)
		refused(t, err, filepath.Join(folder, name)+" is "+kind+" and no regular file")
	}
}

func TestList(t *testing.T) {
	folder := t.TempDir()
	kinds := plant(t, folder)
	if names, err := List(folder); err != nil || !reflect.DeepEqual(names, []string{"hard", "victim"}) {
		t.Errorf("got %q, %v", names, err)
	}
	for _, absent := range []string{"/none", "/none/below", "/victim/below", "/dangling"} {
		if names, err := List(folder + absent); err != nil || names == nil || len(names) != 0 {
			t.Errorf("%s: %q, %v", absent, names, err)
		}
	}
	delete(kinds, "folder")
	kinds["victim"] = "a regular file"
	for name, kind := range kinds {
		_, err := List(filepath.Join(folder, name))
		refused(t, err, filepath.Join(folder, name)+" is "+kind+" and no folder")
	}
	_, err := List(folder + "/loop")
	refused(t, err, "symbolic links")
	crowded := filepath.Join(folder, "crowded")
	must(t, os.Mkdir(crowded, 0o755))
	for i := range listLimit + 1 {
		must(t, os.Symlink("x", filepath.Join(crowded, fmt.Sprint(i))))
	}
	_, err = List(crowded)
	refused(t, err, crowded+" has more than 10000 entries")
}

func TestRemove(t *testing.T) {
	folder := t.TempDir()
	tree, outside := filepath.Join(folder, "tree"), filepath.Join(folder, "outside")
	must(t, os.MkdirAll(filepath.Join(tree, "a/b/c"), 0o755), os.Mkdir(outside, 0o755))
	kinds := plant(t, filepath.Join(tree, "a"))
	plant(t, outside)
	must(
		t,
		os.Symlink(outside, filepath.Join(tree, "a/b/out")),
		os.Symlink(outside, filepath.Join(folder, "to-outside")),
	)
	before := left(t, outside)
	names := []string{
		tree,
		filepath.Join(folder, "to-outside"),
		filepath.Join(folder, "none"),
		filepath.Join(folder, "none/below"),
	}
	for name := range kinds {
		names = append(names, filepath.Join(outside, name, "below-what-is-no-folder"))
	}
	for _, when := range []string{"at first", "again"} {
		if err := Remove(names); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if names := left(t, folder); !reflect.DeepEqual(names, []string{"outside"}) {
			t.Errorf("%s: left are %q", when, names)
		}
	}
	if after := left(t, outside); !reflect.DeepEqual(after, before) || read(outside+"/folder/inner") != "inner" {
		t.Errorf("a link was followed: %q", after)
	}
	for name := range kinds {
		must(t, Remove([]string{filepath.Join(outside, name)}))
	}
	// A link in the path above is followed; it is as if the path were written otherwise.
	must(
		t,
		os.Symlink(outside, filepath.Join(folder, "to-outside")),
		Remove([]string{filepath.Join(folder, "to-outside/victim")}),
	)
	if after := left(t, outside); !reflect.DeepEqual(after, []string{"dangling", "hard", "link", "loop"}) {
		t.Errorf("left are %q", after)
	}
}

// A tree that is deeper than a process may have descriptors, and than any path may be long.
func TestRemoveDeepTree(t *testing.T) {
	top := filepath.Join(t.TempDir(), "top")
	must(t, os.Mkdir(top, 0o755))
	depth := deepTree(t, top)
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	few := unix.Rlimit{Cur: 3 * liftDepth, Max: limit.Max}
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &few))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	if depth <= int(few.Cur) {
		t.Fatalf("%d folders are not deep", depth)
	}
	must(t, Remove([]string{top}))
	if _, err := os.Lstat(top); !IsAbsent(err) {
		t.Errorf("it is still there: %v", err)
	}
}

// deepTree makes folders in folders, each with a file, a folder beside, and names that are in the way of those that
// Remove gives.
func deepTree(t *testing.T, top string) int {
	t.Helper()
	const depth = 1000
	at, err := unix.Open(top, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	for i := range 40 {
		must(t, unix.Mkdirat(at, fmt.Sprintf(".removed-%d", i), 0o755))
		name := fmt.Sprintf(".removed-%d/full", i)
		must(t, unix.Mkdirat(at, name, 0o755))
	}
	for range depth {
		must(
			t,
			unix.Mkdirat(at, "deeper", 0o755),
			unix.Mkdirat(at, "beside", 0o755),
			unix.Mknodat(at, "file", unix.S_IFREG|0o600, 0),
		)
		next, err := unix.Openat(at, "deeper", unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		must(t, err)
		unix.Close(at)
		at = next
	}
	unix.Close(at)
	return depth
}

func TestRemoveEntersNoMount(t *testing.T) {
	mounted := mountTmpfs(t, "")
	must(t, Write(filepath.Join(mounted, "kept"), 0o600, []byte("kept")))
	parent := filepath.Dir(mounted)
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(parent, link))
	for _, path := range []string{mounted, parent, filepath.Join(link, "mounted")} {
		refused(
			t,
			Remove([]string{path}),
			path+" is not removed, since file systems are mounted there: "+mounted+"; unmount",
		)
	}
	if read(filepath.Join(mounted, "kept")) != "kept" {
		t.Error("what is mounted was emptied")
	}
	must(t, Remove([]string{link}))
}

func TestRemoveRefusesItsInput(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	must(t, Write(file, 0o600, []byte("x")))
	refused(t, Remove([]string{file, "/", "relative", file + "/.."}),
		`path "/": everything is not removed`, `path "relative": an absolute path`, `/..": an absolute path`)
	if read(file) != "x" {
		t.Error("the file was removed all the same")
	}
}

func TestRemoveTellsWhatStays(t *testing.T) {
	folder := t.TempDir()
	kept := filepath.Join(folder, "tree/a/kept")
	must(t, Write(kept, 0o600, []byte("x")))
	file, err := os.Open(kept)
	must(t, err)
	defer file.Close()
	const immutable = 0x10 // FS_IMMUTABLE_FL in linux/fs.h
	flags, err := unix.IoctlGetUint32(int(file.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(file.Fd()), unix.FS_IOC_SETFLAGS, int(flags|immutable))
	}
	if err != nil {
		t.Skip("a file cannot be made immutable here: ", err)
	}
	defer unix.IoctlSetPointerInt(int(file.Fd()), unix.FS_IOC_SETFLAGS, int(flags))
	refused(t, Remove([]string{filepath.Join(folder, "tree"), kept}),
		"remove "+folder+"/tree: kept: operation not permitted", "remove "+kept+": operation not permitted")
}

func TestMakeFolders(t *testing.T) {
	folder := t.TempDir()
	must(t, os.Mkdir(filepath.Join(folder, "there"), 0o700), os.Chmod(filepath.Join(folder, "there"), 0o711))
	must(
		t,
		MakeFolders(filepath.Join(folder, "there/a/b"), 0o700),
		MakeFolders(filepath.Join(folder, "there/a/b"), 0o755),
	)
	for name, mode := range map[string]fs.FileMode{"there": 0o711, "there/a": 0o700, "there/a/b": 0o700} {
		if info, err := os.Stat(filepath.Join(folder, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	must(t, MakeFolders("/", 0o755))
}

// A link that a file is replaced by while it is written: the rename replaces the link.
func TestPutAtALinkThatComesMeanwhile(t *testing.T) {
	folder := t.TempDir()
	victim, path := filepath.Join(folder, "victim"), filepath.Join(folder, "file")
	must(t, Write(victim, 0o600, []byte("the victim's")))
	pending, err := (File{path, "600", []byte("new")}).write()
	must(t, err)
	must(t, renameio.Symlink(victim, path), pending.CloseAtomicallyReplace())
	if read(victim) != "the victim's" || read(path) != "new" {
		t.Errorf("the victim holds %q, the file %q", read(victim), read(path))
	}
}
