// Package archive keeps what a sandbox has on its disk in one file: with its links, devices and holes as they are, and
// whatever names it has given. Nothing of it is ever opened by a path: a folder is read and made beneath its handle, a
// link is never followed, and no device, FIFO or socket is opened.
//
// The form is this package's own, since tar knows neither of holes nor of names that are no text: a line for people,
// then for each entry the length of its description, the description as JSON, and what its extents hold. A folder is
// followed by what is in it, and by an end.
package archive

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	// magic is what an archive begins with.
	magic = "gvisor-k3s disk 1\n"
	// What one description may have: a name has 255 bytes, a link 4095, extended attributes 64 KiB in all.
	longestEntry = 1 << 20
	// No description of that many bytes names more parts of a file.
	mostExtents = longestEntry / len("[0,1],")
	// How deep folders may lie: each is open while what is in it is looked at.
	deepest = 1000
	// How many names of a folder are held at a time.
	atOnce = 1000
)

type kind string

const (
	folder  kind = "folder"
	end     kind = "end" // of a folder
	regular kind = "file"
	symlink kind = "symlink"
	// again is another name of a file that came before.
	again   kind = "again"
	special kind = "special" // a device, a FIFO or a socket
)

// entry describes one thing in a folder. Names and links are bytes, which need not be text.
type entry struct {
	Kind  kind              `json:"kind"`
	Name  []byte            `json:"name,omitempty"`
	Mode  uint32            `json:"mode,omitempty"` // with its type, as stat(2) tells it
	UID   uint32            `json:"uid,omitempty"`
	GID   uint32            `json:"gid,omitempty"`
	Times [2]int64          `json:"times"` // of the last access and change, in nanoseconds
	Attrs map[string][]byte `json:"attrs,omitempty"`
	Size  int64             `json:"size,omitempty"`
	// Extents are where a file has data: offsets and lengths.
	Extents [][2]int64 `json:"extents,omitempty"`
	Target  []byte     `json:"target,omitempty"` // of a symlink
	Device  uint64     `json:"device,omitempty"`
	// Path is where the file is that this is another name of, from the top.
	Path []byte `json:"path,omitempty"`
}

func (e entry) write(w io.Writer) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if len(text) > longestEntry {
		return fmt.Errorf("%q: its description has %d bytes", e.Name, len(text))
	}
	if err := binary.Write(w, binary.BigEndian, uint32(len(text))); err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

func readEntry(r io.Reader) (entry, error) {
	var length uint32
	if err := binary.Read(r, binary.BigEndian, &length); err != nil {
		return entry{}, whole(err)
	}
	if length > longestEntry {
		return entry{}, fmt.Errorf("a description of %d bytes: this is no archive of a disk", length)
	}
	text := make([]byte, length)
	if _, err := io.ReadFull(r, text); err != nil {
		return entry{}, whole(err)
	}
	var e entry
	err := json.Unmarshal(text, &e)
	return e, err
}

// whole tells of an archive that ends too early.
func whole(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the archive of the disk is cut short")
	}
	return err
}
