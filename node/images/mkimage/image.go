package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// epoch is every time in an image.
var epoch = time.Unix(0, 0).UTC()

// Annotations that name an image in an index. containerd takes its full name from the first.
const (
	containerdNameAnnotation = "io.containerd.image.name"
	refNameAnnotation        = "org.opencontainers.image.ref.name"
)

// write makes the images and puts them at output, where nothing half-written is ever seen.
func write(images []*spec, output string) (err error) {
	dir, err := os.MkdirTemp("", "mkimage")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	oci, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("writing the OCI layout: %w", err)
	}
	for _, s := range images {
		if err := add(oci, s); err != nil {
			return fmt.Errorf("writing the OCI layout: %w", err)
		}
	}

	temp, err := os.CreateTemp(filepath.Dir(output), filepath.Base(output)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name()) // not there after the rename
	if err := errors.Join(archive(temp, dir), temp.Chmod(0o644), temp.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", output, err)
	}
	return os.Rename(temp.Name(), output)
}

// add makes an image, and puts it into the layout by each of its names.
func add(oci layout.Path, s *spec) error {
	img, err := image(s)
	if err != nil {
		return err
	}
	for _, tag := range s.Names {
		err := oci.AppendImage(img,
			layout.WithPlatform(v1.Platform{OS: "linux", Architecture: s.Arch}),
			layout.WithAnnotations(map[string]string{
				containerdNameAnnotation: tag.Name(),
				refNameAnnotation:        tag.TagStr(),
			}))
		if err != nil {
			return err
		}
	}
	return nil
}

// image is the OCI image: one layer and its configuration.
func image(s *spec) (v1.Image, error) {
	content, err := layer(s.Entries)
	if err != nil {
		return nil, err
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err = mutate.Append(img, mutate.Addendum{
		Layer:   static.NewLayer(content, types.OCIUncompressedLayer),
		History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "mkimage"},
	})
	if err != nil {
		return nil, fmt.Errorf("adding the layer: %w", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Created = "linux", s.Arch, v1.Time{Time: epoch}
	config.Config = v1.Config{Entrypoint: s.Entrypoint, Cmd: s.Cmd, Env: s.Env, User: s.User, Labels: s.Labels}
	return mutate.ConfigFile(img, config)
}

// layer is a tar archive of the entries, which are sorted, and of the folders they are in.
func layer(entries []entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	made := map[string]bool{"/": true}
	for _, e := range entries {
		if err := writeDirs(w, made, path.Dir(e.Dest)); err != nil {
			return nil, err
		}
		header := &tar.Header{Name: e.Dest[1:], ModTime: epoch}
		var content []byte
		if e.Folder {
			made[e.Dest] = true
			header.Typeflag, header.Name, header.Mode = tar.TypeDir, e.Dest[1:]+"/", e.Mode
		} else if e.Source == "" {
			header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, e.Target, 0o777
		} else {
			var err error
			if content, err = os.ReadFile(e.Source); err != nil {
				return nil, err
			}
			header.Typeflag, header.Mode, header.Size = tar.TypeReg, e.Mode, int64(len(content))
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Dest, err)
		}
		if _, err := w.Write(content); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Dest, err)
		}
	}
	err := w.Close() // writes the end of the archive
	return b.Bytes(), err
}

func writeDirs(w *tar.Writer, made map[string]bool, dir string) error {
	if made[dir] {
		return nil
	}
	if err := writeDirs(w, made, path.Dir(dir)); err != nil {
		return err
	}
	made[dir] = true
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir[1:] + "/", Mode: 0o755, ModTime: epoch})
}

// archive writes a folder's content as tar, in the order of names.
func archive(out io.Writer, dir string) error {
	w := tar.NewWriter(out)
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || file == dir {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: epoch})
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: epoch,
		}); err != nil {
			return err
		}
		_, err = w.Write(content)
		return err
	})
	return errors.Join(err, w.Close())
}
