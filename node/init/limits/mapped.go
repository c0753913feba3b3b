package limits

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// mapping is a part of a file that is mapped.
//
// gVisor charges a cgroup with the files that its processes map, up to the mapping's whole length where it is asked for
// pages at once (MAP_POPULATE, by which etcd's bbolt maps ten gigabytes of a small file). They are the host's page
// cache, which the host takes back when it needs memory, as Linux does with a cgroup's before it kills anything in it.
type mapping struct {
	device, inode, offset string
}

// mappedFiles are the bytes of files on disks that processes have mapped, each counted once. What lies in a tmpfs is
// memory, and so are the pages that a process has of its own since it wrote to them.
func mappedFiles(proc string, pids []int) (bytes uint64) {
	found := map[mapping]uint64{}
	for _, pid := range pids {
		folder := filepath.Join(proc, fmt.Sprint(pid))
		maps, err := os.Open(filepath.Join(folder, "smaps"))
		if err != nil {
			continue // it has ended
		}
		addMapped(found, maps, tmpfsDevices(filepath.Join(folder, "mountinfo")))
		maps.Close()
	}
	for _, mapped := range found {
		bytes += mapped
	}
	return bytes
}

func addMapped(found map[mapping]uint64, smaps io.Reader, memory map[string]bool) {
	var key mapping
	var counts bool
	var resident uint64
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		switch {
		case len(fields) >= 5 && strings.Contains(fields[0], "-"): // range, rights, offset, device, inode, name
			key = mapping{offset: fields[2], device: fields[3], inode: fields[4]}
			name := strings.Join(fields[5:], " ")
			counts = fields[4] != "0" && !memory[fields[3]] && !isShared(name)
		case len(fields) < 2 || !counts:
		case fields[0] == "Rss:":
			resident = kibibytes(fields[1])
		case fields[0] == "Anonymous:":
			if mapped := resident - min(kibibytes(fields[1]), resident); mapped > found[key] {
				found[key] = mapped
			}
		}
	}
}

// isShared tells memory that processes share, by the names that it has instead of a file's.
func isShared(name string) bool {
	for _, prefix := range []string{"/memfd:", "/dev/zero", "/SYSV"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// tmpfsDevices are the devices of a process's file systems in memory, as smaps writes them.
func tmpfsDevices(mountinfo string) map[string]bool {
	devices := map[string]bool{}
	content, _ := os.ReadFile(mountinfo)
	for line := range strings.Lines(string(content)) {
		mount, kind, _ := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if len(fields) < 3 || !strings.HasPrefix(kind, "tmpfs ") {
			continue
		}
		var major, minor uint32
		if _, err := fmt.Sscanf(fields[2], "%d:%d", &major, &minor); err == nil {
			devices[fmt.Sprintf("%02x:%02x", major, minor)] = true
		}
	}
	return devices
}

func kibibytes(text string) uint64 {
	value, _ := strconv.ParseUint(text, 10, 64)
	return value << 10
}
