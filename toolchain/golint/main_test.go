package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	const gofmt = "gofmt writes this another way: run gofmt -w on the file"
	for name, test := range map[string]struct {
		source string
		want   []string
	}{
		"fine":           {"package a\n\nfunc f() error { return nil }\n", nil},
		"120 characters": {"package a\n\n// " + strings.Repeat("é", 117) + "\nvar x int\n", nil},
		"121 characters": {
			"package a\n\n// " + strings.Repeat("é", 118) + "\n", []string{"3: the line has 121 characters; 120 are allowed"},
		},
		"not formatted":   {"package a\n\nvar  x int\n", []string{"3: " + gofmt}},
		"no last newline": {"package a\n\nvar x int", []string{"3: " + gofmt}},
		"too many lines":  {"package a\n\nvar x int\n\n", []string{"4: " + gofmt}},
		"two statements":  {"package a\n\nfunc f() { g(); g(); g() }\n", []string{"3: two statements in a line"}},
		"after a block": {
			"package a\n\nfunc f() {\n\tif true {\n\t}; g()\n}\n", []string{"5: two statements in a line", "5: " + gofmt},
		},
		"in a case": {
			"package a\n\nfunc f() {\n\tswitch {\n\tcase true:\n\t\tg(); g()\n\t}\n}\n",
			[]string{"6: two statements in a line", "6: " + gofmt},
		},
		"in a select": {
			"package a\n\nfunc f() {\n\tselect {\n\tdefault:\n\t\tg(); g()\n\t}\n}\n",
			[]string{"6: two statements in a line", "6: " + gofmt},
		},
		"not Go": {"package a\n\nvar )\n", []string{"3: expected 'IDENT', found ')'"}},
		"of one clause": {
			"package a\n\nfunc f() {\n\tfor i := 0; i < 1; i++ {\n\t\tif x := i; x > 0 {\n\t\t}\n\t}\n}\n", nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, f := range check("a.go", []byte(test.source)) {
				got = append(got, fmt.Sprintf("%d: %s", f.line, f.what))
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestLint(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "below", "a.go")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("package a\nvar x int\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	findings, err := lint([]string{folder})
	if err != nil || len(findings) != 1 || !strings.HasPrefix(findings[0].String(), path+":2: gofmt") {
		t.Errorf("got %v, %v", findings, err)
	}
	if _, err := lint([]string{folder + "-missing"}); err == nil {
		t.Error("a folder that is not there is no error")
	}
}
