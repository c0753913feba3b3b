// Package usage is the error of who has called a program wrongly.
package usage

import "fmt"

// Error is a command line that is not as it should be.
type Error struct{ Reason error }

func (e Error) Error() string { return e.Reason.Error() }

func (e Error) Unwrap() error { return e.Reason }

// Wrong is such an error.
func Wrong(format string, args ...any) error { return Error{fmt.Errorf(format, args...)} }
