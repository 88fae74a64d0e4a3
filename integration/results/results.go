// Package results keeps what labs and benchmarks have found in JSON files that
// the next run adds to.
package results

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Load reads a results file; one that is not there has no results.
func Load[R any](path string) ([]R, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r []R
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("results file %s: %w", path, err)
	}
	return r, nil
}

// Save replaces the results file, whose folder it makes if need be. One that is
// read at the same time is the old one or the new one.
func Save[R any](path string, r []R) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
