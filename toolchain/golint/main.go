// Command golint names what the Go files below some folders do against the project's layout: a line of more than 120
// characters, two statements in a line, and what gofmt would write another way.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/scanner"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"unicode/utf8"
)

// longest is how many characters a line may have. A tab is one.
const longest = 120

func main() {
	findings, err := lint(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "golint:", err)
		os.Exit(2)
	}
	for _, f := range findings {
		fmt.Println(f)
	}
	if len(findings) > 0 {
		os.Exit(1)
	}
}

// finding is what is wrong in a line of a file.
type finding struct {
	path string
	line int
	what string
}

func (f finding) String() string { return fmt.Sprintf("%s:%d: %s", f.path, f.line, f.what) }

func lint(folders []string) ([]finding, error) {
	var findings []finding
	for _, folder := range folders {
		err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || filepath.Ext(path) != ".go" {
				return err
			}
			source, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			findings = append(findings, check(path, source)...)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return findings, nil
}

// check returns the findings of one file, by line.
func check(path string, source []byte) []finding {
	var findings []finding
	add := func(line int, what string) { findings = append(findings, finding{path, line, what}) }

	files := token.NewFileSet()
	tree, err := parser.ParseFile(files, path, source, parser.SkipObjectResolution)
	if wrong, ok := errors.AsType[scanner.ErrorList](err); ok {
		for _, e := range wrong {
			add(e.Pos.Line, e.Msg)
		}
		return findings
	}
	lines := slices.Collect(bytes.Lines(source))
	for i, line := range lines {
		if length := utf8.RuneCount(bytes.TrimSuffix(line, []byte("\n"))); length > longest {
			add(i+1, fmt.Sprintf("the line has %d characters; %d are allowed", length, longest))
		}
	}
	for _, line := range joined(files, tree) {
		add(line, "two statements in a line")
	}
	formatted, err := format.Source(source)
	if err != nil {
		add(1, err.Error())
	} else if line := firstDifference(lines, slices.Collect(bytes.Lines(formatted))); line > 0 {
		add(line, "gofmt writes this another way: run gofmt -w on the file")
	}
	slices.SortStableFunc(findings, func(a, b finding) int { return a.line - b.line })
	return findings
}

// joined returns the lines in which a statement begins where the one before it ends.
func joined(files *token.FileSet, tree *ast.File) []int {
	var lines []int
	ast.Inspect(tree, func(node ast.Node) bool {
		var statements []ast.Stmt
		switch node := node.(type) {
		case *ast.BlockStmt:
			statements = node.List
		case *ast.CaseClause:
			statements = node.Body
		case *ast.CommClause:
			statements = node.Body
		}
		for i := 1; i < len(statements); i++ {
			line := files.Position(statements[i].Pos()).Line
			if line == files.Position(statements[i-1].End()).Line && !slices.Contains(lines, line) {
				lines = append(lines, line)
			}
		}
		return true
	})
	return lines
}

// firstDifference returns the number of the first line in which two texts differ, or 0.
func firstDifference(a, b [][]byte) int {
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || !bytes.Equal(a[i], b[i]) {
			return min(i+1, len(a)) // what is missing is missing at the end
		}
	}
	return 0
}
