package command

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gobwas/glob"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
)

// globAssets returns the files under dir that the globs select, by slash-separated path relative to dir. In a glob *
// matches anything but a slash and ** matches slashes too; a leading ! takes out what the globs before it selected.
func globAssets(dir string, patterns []string) (map[string]*resource.Asset, error) {
	type rule struct {
		glob.Glob
		exclude bool
	}
	rules := make([]rule, 0, len(patterns))
	for _, pattern := range patterns {
		body, exclude := strings.CutPrefix(pattern, "!")
		compiled, err := glob.Compile(body, '/')
		if err != nil {
			return nil, fmt.Errorf("glob %q: %w", pattern, err)
		}
		rules = append(rules, rule{compiled, exclude})
	}

	assets := map[string]*resource.Asset{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		selected := false
		for _, rule := range rules {
			if rule.Match(path) {
				selected = !rule.exclude
			}
		}
		if !selected {
			return nil
		}
		asset, err := resource.NewPathAsset(filepath.Join(dir, filepath.FromSlash(path)))
		if err != nil {
			return err
		}
		assets[path] = asset
		return nil
	})
	return assets, err
}
