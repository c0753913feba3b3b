package nodehost

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pulumi/pulumi/sdk/v3/go/common/resource/plugin"
	"github.com/pulumi/pulumi/sdk/v3/go/common/util/logging"
	"github.com/pulumi/pulumi/sdk/v3/nodejs/npm"
	pulumirpc "github.com/pulumi/pulumi/sdk/v3/proto/go"
)

// requiredPackages lists the plugins that npm packages reachable from programDir declare in their package.json
// ("pulumi": {"resource": true}), sorted and without duplicates. A package whose manifest cannot be used is logged
// and left out, as in the real host: the engine asks again, by name, when the program uses it.
//
// Only the roots of installed packages are looked at, where the real host reads every directory under programDir.
func requiredPackages(programDir string) ([]*pulumirpc.PackageDependency, error) {
	scan := scanner{visited: map[string]bool{}, found: map[string]*pulumirpc.PackageDependency{}}
	if modules := nearestModules(programDir); modules != "" {
		scan.modules(modules)
	}
	if root, err := npm.FindWorkspaceRoot(programDir); err == nil {
		scan.modules(filepath.Join(root, "node_modules"))
	}
	for _, problem := range scan.problems {
		logging.V(3).Infof("looking for required plugins: %v", problem)
	}
	if len(scan.sdkMajors) > 1 {
		fmt.Fprintf(os.Stderr, "warning: the program has @pulumi/pulumi in several major versions, which do not work "+
			"together: %s\n", strings.Join(sortedKeys(scan.sdkMajors), ", "))
	}
	packages := make([]*pulumirpc.PackageDependency, 0, len(scan.found))
	for _, key := range sortedKeys(scan.found) {
		packages = append(packages, scan.found[key])
	}
	return packages, nil
}

// nearestModules is the first node_modules at or above dir, where node's own resolution starts, or "".
func nearestModules(dir string) string {
	for {
		modules := filepath.Join(dir, "node_modules")
		if info, err := os.Stat(modules); err == nil && info.IsDir() {
			return modules
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return ""
		}
		dir = parent
	}
}

type scanner struct {
	visited   map[string]bool // real paths of packages, as links may form circles
	found     map[string]*pulumirpc.PackageDependency
	sdkMajors map[string]bool
	problems  []error
}

// modules looks at each package of a node_modules directory, scoped ones too.
func (s *scanner) modules(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.problems = append(s.problems, err)
		}
		return
	}
	for _, entry := range entries {
		name, path := entry.Name(), filepath.Join(dir, entry.Name())
		switch {
		case entry.Type().IsRegular(), strings.HasPrefix(name, "."): // .bin, or pnpm's store, reached through links
		case strings.HasPrefix(name, "@"):
			s.modules(path)
		default:
			s.pkg(path)
		}
	}
}

// pkg looks at one package and at those installed inside it.
func (s *scanner) pkg(dir string) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		s.problems = append(s.problems, err)
		return
	}
	if s.visited[dir] {
		return
	}
	s.visited[dir] = true

	manifest, err := os.ReadFile(filepath.Join(dir, "package.json"))
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.problems = append(s.problems, err)
		}
		return
	}
	if bytes.Contains(manifest, []byte("pulumi")) { // sparing the parse of hundreds of others
		if err := s.manifest(manifest); err != nil {
			s.problems = append(s.problems, fmt.Errorf("%s: %w", filepath.Join(dir, "package.json"), err))
		}
	}
	s.modules(filepath.Join(dir, "node_modules"))
}

func (s *scanner) manifest(text []byte) error {
	var manifest struct {
		Name    string                  `json:"name"`
		Version string                  `json:"version"`
		Pulumi  plugin.PulumiPluginJSON `json:"pulumi"`
	}
	if err := json.Unmarshal(text, &manifest); err != nil {
		return err
	}
	if manifest.Name == "@pulumi/pulumi" {
		major, _, _ := strings.Cut(manifest.Version, ".")
		if s.sdkMajors == nil {
			s.sdkMajors = map[string]bool{}
		}
		s.sdkMajors[major] = true
	}
	if !manifest.Pulumi.Resource {
		return nil
	}

	name := manifest.Pulumi.Name
	if name == "" {
		short, official := strings.CutPrefix(manifest.Name, "@pulumi/")
		if !official {
			return fmt.Errorf("the package %q says that it has a plugin but not its name (pulumi.name)", manifest.Name)
		}
		name = short
	}
	version := cmp.Or(manifest.Pulumi.Version, manifest.Version)
	if version == "" {
		return fmt.Errorf("the package %q says that it has a plugin but not its version", manifest.Name)
	}
	if !strings.HasPrefix(version, "v") {
		version = "v" + version
	}
	dependency := &pulumirpc.PackageDependency{
		Name: name, Kind: "resource", Version: version, Server: manifest.Pulumi.Server,
	}
	if p := manifest.Pulumi.Parameterization; p != nil {
		dependency.Parameterization = &pulumirpc.PackageParameterization{Name: p.Name, Version: p.Version, Value: p.Value}
	}
	key := []string{name, version, dependency.Server, dependency.GetParameterization().String()}
	s.found[strings.Join(key, "\x00")] = dependency
	return nil
}
