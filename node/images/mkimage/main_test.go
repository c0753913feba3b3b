package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// make1 writes an image from two fresh files and returns the archive's path.
func make1(t *testing.T, more ...string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"app": "binary", "with:colon": "text"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	output := filepath.Join(dir, "image.tar")
	args := append([]string{
		"--name", "gvisor-k3s.local/app:1.2", "--platform", "linux/arm64", "--user", "65532:65532",
		"--entrypoint", "/bin/app", "--cmd", "--port", "--cmd", "8080",
		"--env", "A=b=c", "--label", "z=1", "--label", "a=x=y",
		"--file", filepath.Join(dir, "app") + ":/bin/app:0755",
		"--file", filepath.Join(dir, "with:colon") + ":/etc/deep/file:644",
		"--symlink", "app:/bin/link", "-o", output,
	}, more...)
	if err := run(args); err != nil {
		t.Fatal(err)
	}
	return output
}

func TestSameInputSameBytes(t *testing.T) {
	var sums []string
	for range 2 {
		content, err := os.ReadFile(make1(t))
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, fmt.Sprintf("%x", sha256.Sum256(content)))
	}
	if sums[0] != sums[1] {
		t.Errorf("two runs differ: %v", sums)
	}
	other, err := os.ReadFile(make1(t, "--label", "b=1"))
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%x", sha256.Sum256(other)) == sums[0] {
		t.Error("another label gives the same bytes")
	}
}

// unpack extracts an archive and checks what makes it reproducible.
func unpack(t *testing.T, archive string) layout.Path {
	t.Helper()
	file, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	dir := t.TempDir()
	for r := tar.NewReader(file); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(epoch) || h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s: time %v, owner %d:%d", h.Name, h.ModTime, h.Uid, h.Gid)
		}
		to := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.MkdirAll(to, 0o755)
		} else {
			var content []byte
			content, err = io.ReadAll(r)
			err = errors.Join(err, os.WriteFile(to, content, 0o600))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return layout.Path(dir)
}

func TestLayout(t *testing.T) {
	index, err := unpack(t, make1(t)).ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index, validate.Fast); err != nil {
		t.Errorf("not valid: %v", err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != 1 {
		t.Fatalf("%d images", len(manifest.Manifests))
	}
	d := manifest.Manifests[0]
	if got := d.Annotations["io.containerd.image.name"]; got != "gvisor-k3s.local/app:1.2" {
		t.Errorf("containerd's name is %q", got)
	}
	if got := d.Annotations["org.opencontainers.image.ref.name"]; got != "1.2" {
		t.Errorf("reference name is %q", got)
	}
	if d.Platform.String() != "linux/arm64" || d.MediaType != types.OCIManifestSchema1 {
		t.Errorf("platform %s, media type %s", d.Platform, d.MediaType)
	}
	img, err := index.Image(d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	checkConfig(t, img)
	checkLayer(t, img)
}

func checkConfig(t *testing.T, img v1.Image) {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.OS != "linux" || config.Architecture != "arm64" || !config.Created.Equal(epoch) ||
		!config.History[0].Created.Equal(epoch) {
		t.Errorf("%s/%s, created %v, %+v", config.OS, config.Architecture, config.Created, config.History)
	}
	c := config.Config
	if !slices.Equal(c.Entrypoint, []string{"/bin/app"}) || !slices.Equal(c.Cmd, []string{"--port", "8080"}) ||
		!slices.Equal(c.Env, []string{"A=b=c"}) || c.User != "65532:65532" {
		t.Errorf("config: %+v", c)
	}
	if len(c.Labels) != 2 || c.Labels["z"] != "1" || c.Labels["a"] != "x=y" {
		t.Errorf("labels: %v", c.Labels)
	}
}

type counter struct{ n *int }

func countTo(n *int) io.Writer { return counter{n} }

func (c counter) Write(b []byte) (int, error) {
	*c.n += len(b)
	return len(b), nil
}

func checkLayer(t *testing.T, img v1.Image) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != 1 {
		t.Fatalf("%d layers", len(layers))
	}
	digest, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	// Not compressed, so that unpacking costs nothing: then both digests are the same.
	if got := config.RootFS.DiffIDs; !slices.Equal(got, []v1.Hash{digest}) {
		t.Errorf("layer %s, diff IDs %v", digest, got)
	}
	content, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	sum, size := sha256.New(), 0
	reader := io.TeeReader(content, io.MultiWriter(sum, countTo(&size)))
	var got []string
	for r := tar.NewReader(reader); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		entry := fmt.Sprintf("%s %o %d:%d %d %s%s",
			h.Name, h.Mode, h.Uid, h.Gid, h.ModTime.Sub(time.Unix(0, 0)), h.Linkname, body)
		got = append(got, strings.TrimSpace(entry))
	}
	if _, err := io.Copy(io.Discard, reader); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%x", sum.Sum(nil)); got != digest.Hex {
		t.Errorf("layer has SHA-256 %s, its digest is %s", got, digest)
	}
	// Six headers, two files of one block, and the two empty blocks that end an archive.
	if want := (6 + 2 + 2) * 512; size != want {
		t.Errorf("layer has %d bytes, want %d", size, want)
	}
	want := []string{
		"bin/ 755 0:0 0", "bin/app 755 0:0 0 binary", "bin/link 777 0:0 0 app",
		"etc/ 755 0:0 0", "etc/deep/ 755 0:0 0", "etc/deep/file 644 0:0 0 text",
	}
	if !slices.Equal(got, want) {
		t.Errorf("layer has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestRoot(t *testing.T) {
	root := t.TempDir()
	for path, mode := range map[string]os.FileMode{
		"bin/": 0o755, "tmp/": 0o777 | os.ModeSticky, "bin/su": 0o755 | os.ModeSetuid,
		"deep/er/": 0o700, "deep/er/file": 0o640,
	} {
		file, isFolder := strings.CutSuffix(path, "/")
		file = filepath.Join(root, file)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		if isFolder {
			err = errors.Join(err, os.MkdirAll(file, 0o755))
		} else {
			err = errors.Join(err, os.WriteFile(file, []byte("x"), 0o600))
		}
		if err = errors.Join(err, os.Chmod(file, mode)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/nowhere", filepath.Join(root, "bin/link")); err != nil {
		t.Fatal(err)
	}
	os.Chmod(filepath.Join(root, "deep"), 0o750)
	entries, err := tree(root)
	if err != nil {
		t.Fatal(err)
	}
	content, err := layer(entries)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(bytes.NewReader(content)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %o %s", h.Name, h.Mode, h.Linkname)))
	}
	want := []string{
		"bin/ 755", "bin/link 777 /nowhere", "bin/su 4755", "deep/ 750", "deep/er/ 700", "deep/er/file 640", "tmp/ 1777",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := syscall.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = tree(root)
	if err == nil || !strings.Contains(err.Error(), "fifo is neither a file nor a link nor a folder") {
		t.Errorf("a pipe: %v", err)
	}
}

func TestSeveralImages(t *testing.T) {
	oci := unpack(t, make1(t, "--", "--name", "gvisor-k3s.local/other:1", "--name", "gvisor-k3s.local/third:1",
		"--file", "/etc/hostname:/b:0644"))
	index, err := oci.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, image := range manifest.Manifests {
		names = append(names, image.Annotations[containerdNameAnnotation])
	}
	want := []string{"gvisor-k3s.local/app:1.2", "gvisor-k3s.local/other:1", "gvisor-k3s.local/third:1"}
	if !slices.Equal(names, want) || manifest.Manifests[0].Digest == manifest.Manifests[1].Digest ||
		manifest.Manifests[1].Digest != manifest.Manifests[2].Digest {
		t.Errorf("the images are %v: %+v", names, manifest.Manifests)
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	output := filepath.Join(t.TempDir(), "image.tar")
	err := run([]string{
		"--name", "pause", "--platform", "linux/386", "--user", "nobody", "--label", "x", "--env", "=1",
		"--file", "a:b", "--file", "a:relative:0755", "--file", "/etc/passwd:/x:0999",
		"--file", "/nonexistent:/y:0644", "--file", "/etc:/z:0755",
		"--symlink", "x:/y", "-o", output, "extra",
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{
		`--name "pause"`, `--platform "linux/386": allowed are linux/amd64, linux/arm64`,
		`--user "nobody"`, `--label "x"`, `--env "=1"`,
		`--file "a:b": give SRC:DEST:MODE`, `--file "a:relative:0755"`, `--file "/etc/passwd:/x:0999"`,
		`--file "/nonexistent:/y:0644": stat /nonexistent`,
		`--file "/etc:/z:0755": /etc is not a regular file`, `/y: given more than once`, `["extra"]`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %q:\n%v", want, err)
		}
	}
	if _, err := os.Stat(output); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an archive was written: %v", err)
	}
	if err := run(nil); err == nil || !strings.Contains(err.Error(), "-o: missing") ||
		!strings.Contains(err.Error(), "--file: missing") {
		t.Errorf("without options: %v", err)
	}
	whole := []string{"--name", "gvisor-k3s.local/pause:1", "--file", "/etc/passwd:/x:0644"}
	if err := run(whole); err == nil || !strings.Contains(err.Error(), "-o: missing") {
		t.Errorf("without a file to write: %v", err)
	}
	// The first image has no file, and the last one a wrong user.
	err = run(slices.Concat([]string{"-o", output}, whole[:2], []string{"--"}, whole, []string{"--user", "nobody"}))
	if err == nil || !strings.Contains(err.Error(), "--file: missing") ||
		!strings.Contains(err.Error(), `--user "nobody"`) {
		t.Errorf("without a file: %v", err)
	}
}
