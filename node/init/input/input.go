// Package input reads what sandbox-init is given: JSON of a known form, and nothing else.
package input

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
)

// Decode reads one JSON value, refuses a field that is not known, null, and whatever follows the value.
func Decode(r io.Reader, into any) error {
	content, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if trimmed := bytes.TrimSpace(content); len(trimmed) == 0 || string(trimmed) == "null" {
		return errors.New("there is none: JSON is needed")
	}
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return errors.New("something follows the JSON value")
	}
	return nil
}
