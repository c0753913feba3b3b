package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
)

// Rule is one change of an OCI spec; exactly one field besides Value is set. Dropping what is not there changes
// nothing.
type Rule struct {
	// DropNamespace is a namespace's type, such as "cgroup": the container shares the node's.
	DropNamespace string `json:"dropNamespace,omitempty"`
	// DropMaskedPath is an entry of linux.maskedPaths.
	DropMaskedPath string `json:"dropMaskedPath,omitempty"`
	// DropMount is the destination of an entry of mounts.
	DropMount string `json:"dropMount,omitempty"`
	// Unset is a path such as "linux.seccomp".
	Unset string `json:"unset,omitempty"`
	// Set is a path that gets Value.
	Set   string          `json:"set,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
	// Sysctls is "show": a pod's are shown to it and not set; see showSysctls.
	Sysctls string `json:"sysctls,omitempty"`
}

// Apply returns the spec with the rules applied in order.
func Apply(spec []byte, rules []Rule) ([]byte, error) {
	if !gjson.ValidBytes(spec) {
		return nil, errors.New("the OCI spec is not valid JSON")
	}
	for i, rule := range rules {
		var err error
		if spec, err = rule.apply(spec); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i+1, err)
		}
	}
	return spec, nil
}

func (r Rule) apply(spec []byte) ([]byte, error) {
	switch {
	case r.DropNamespace != "":
		return dropFromList(spec, "linux.namespaces", "type", r.DropNamespace)
	case r.DropMaskedPath != "":
		return dropFromList(spec, "linux.maskedPaths", "", r.DropMaskedPath)
	case r.DropMount != "":
		return dropFromList(spec, "mounts", "destination", r.DropMount)
	case r.Unset != "":
		return sjson.DeleteBytes(spec, r.Unset)
	case r.Sysctls == "show":
		return spec, nil // after the others, which may change what it reads
	case r.Set != "" && r.Value != nil:
		return sjson.SetRawBytes(spec, r.Set, r.Value)
	}
	return nil, errors.New("it says nothing to do; " +
		"one of dropNamespace, dropMaskedPath, dropMount, unset, set with value, or sysctls is needed")
}

// dropFromList removes every entry of the list at path whose field is value; an empty field compares the entry itself.
func dropFromList(spec []byte, path, field, value string) ([]byte, error) {
	entries := gjson.GetBytes(spec, path).Array()
	for i := len(entries) - 1; i >= 0; i-- {
		entry := entries[i]
		if field != "" {
			entry = entry.Get(field)
		}
		if entry.String() != value {
			continue
		}
		var err error
		if spec, err = sjson.DeleteBytes(spec, fmt.Sprintf("%s.%d", path, i)); err != nil {
			return nil, err
		}
	}
	return spec, nil
}
