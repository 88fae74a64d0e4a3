package files

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
)

const (
	treeBytes  = 1 << 30
	imageBytes = 2 << 30
	names      = 100_000
)

// sizes of files: as many are short as on a server, and most bytes are in long
// ones.
var sizes = []int{0, 300, 4000, 20_000, 100_000, 300, 4000, 20_000, 1 << 20, 4 << 20, 40 << 20}

// fillTree writes treeBytes in files, some in a directory.
func fillTree(root string) error {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 64<<20)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	for n, left := 0, treeBytes; left > 0; n++ {
		dir := filepath.Join(root, fmt.Sprintf("d%d/s%d", n%20, n/20%20))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		size := min(left, sizes[r.IntN(len(sizes))])
		from := r.IntN(len(noise) - size)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", n)), noise[from:from+size], 0o644); err != nil {
			return err
		}
		left -= size
	}
	return nil
}

// fillNames makes a directory of many empty files.
func fillNames(root string) error {
	dir := filepath.Join(root, "names")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for n := range names {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file%06d", n)), nil, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func countLines(s string) int { return strings.Count(s, "\n") }
