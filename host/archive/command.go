package archive

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"

	"gvisor-k3s/host/usage"
)

// UnpackCommand is the subcommand: unpack --sha256=HASH ARCHIVE FOLDER makes a new folder of what an archive holds. An
// archive of another hash is told; what was made of it until then is not removed.
func UnpackCommand(args []string) error {
	flags := flag.NewFlagSet("unpack", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	hash := flags.String("sha256", "", "the archive's `hash`")
	if err := flags.Parse(args); err != nil {
		return usage.Error{Reason: err}
	}
	if flags.NArg() != 2 || len(*hash) != 2*sha256.Size {
		return usage.Wrong("unpack %q: --sha256=HASH ARCHIVE FOLDER is needed", args)
	}
	file, err := os.Open(flags.Arg(0))
	if err != nil {
		return err
	}
	defer file.Close()
	sum := sha256.New()
	from := io.TeeReader(bufio.NewReaderSize(file, 1<<20), sum)
	if err := Unpack(from, flags.Arg(1)); err != nil {
		return fmt.Errorf("%s: %w", file.Name(), err)
	}
	if _, err := io.Copy(io.Discard, from); err != nil {
		return err
	}
	if found := hex.EncodeToString(sum.Sum(nil)); found != *hash {
		return fmt.Errorf("%s is damaged: its SHA-256 is %s, and was %s", file.Name(), found, *hash)
	}
	return nil
}
