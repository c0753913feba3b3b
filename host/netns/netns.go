// Package netns does something in another network namespace.
package netns

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// In runs do on a thread that is in the namespace of the file path. Sockets stay in the namespace that they are made
// in; what do starts on other threads is not in it.
func In[T any](path string, do func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and no other one gets to be in that namespace.
		runtime.LockOSThread()
		var r result
		if r.err = enter(path); r.err == nil {
			r.value, r.err = do()
		}
		done <- r
	}()
	r := <-done
	return r.value, r.err
}

func enter(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering %s: %w", path, err)
	}
	return nil
}
