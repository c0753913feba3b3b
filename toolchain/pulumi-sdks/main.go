// Program pulumi-sdks writes Pulumi's SDK for a package, as `pulumi package gen-sdk` does, which takes each language's
// host for it; these hosts are no Go modules that could be pinned.
//
//	pulumi-sdks go|java|nodejs|python SCHEMA FOLDER
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	javagen "github.com/pulumi/pulumi-java/pkg/codegen/java"
	gogen "github.com/pulumi/pulumi/pkg/v3/codegen/go"
	nodegen "github.com/pulumi/pulumi/pkg/v3/codegen/nodejs"
	pygen "github.com/pulumi/pulumi/pkg/v3/codegen/python"
	"github.com/pulumi/pulumi/pkg/v3/codegen/schema"
)

const tool = "gvisor-k3s"

// files are their contents by their paths.
type files = map[string][]byte

var generators = map[string]func(*schema.Package) (files, error){
	"java":   func(p *schema.Package) (files, error) { return javagen.GeneratePackage(tool, p, nil, nil, false, true) },
	"go":     func(p *schema.Package) (files, error) { return gogen.GeneratePackage(tool, p, nil) },
	"nodejs": func(p *schema.Package) (files, error) { return nodegen.GeneratePackage(tool, p, nil, nil, false, nil) },
	"python": func(p *schema.Package) (files, error) { return pygen.GeneratePackage(tool, p, nil, nil) },
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "pulumi-sdks:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 3 || generators[args[0]] == nil {
		return fmt.Errorf("%q: a language (go, java, nodejs, python), a schema's file and a folder are needed", args)
	}
	content, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	var spec schema.PackageSpec
	if err := json.Unmarshal(content, &spec); err != nil {
		return err
	}
	bound, diagnostics, err := schema.BindSpec(spec, schema.NewPluginLoader(nil), schema.ValidationOptions{})
	if err != nil {
		return err
	}
	if diagnostics.HasErrors() {
		return diagnostics
	}
	written, err := generators[args[0]](bound)
	if err != nil {
		return err
	}
	for name, content := range written {
		file := filepath.Join(args[2], name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
