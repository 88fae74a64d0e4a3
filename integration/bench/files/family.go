// Package files is the benchmarks of files taken out of a volume without the
// kernel's file systems: a tree copied beside cp from the kernel's own mount, and
// a large directory listed. They run as root, with FUSE and loop devices.
package files

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/integration/bench"
)

// Goals: half of the kernel's speed for a copy, and seconds for a list.
const (
	half     = 0.5
	listSecs = 2
)

// Family gives the benchmarks of files out.
func Family(bench.Options) bench.Family {
	return bench.Family{Name: "files", Benchmarks: []bench.Benchmark{
		{
			Rows:     []bench.Row{{Name: "files/copy", Unit: "MiB/s", Better: bench.Higher, Goal: half}},
			PeerName: "cp -a of a mount", Runs: 3,
			Open: openCopy,
		},
		{
			// find -ls asks for the attributes of each, as ls -l does. That one also
			// asks for two extended attributes by name, each a question to us.
			Rows: []bench.Row{{Name: "files/list-100000", Unit: "s", Better: bench.Lower, Limit: listSecs, Goal: 1}},
			Open: openList,
		},
	}}
}

// openCopy copies a tree to a new place on the disk, and waits until it is there.
func openCopy(ctx context.Context, dir string) (bench.Pair, error) {
	p, err := newPlace(ctx, dir, fillTree)
	if err != nil {
		return bench.Pair{}, err
	}
	to := filepath.Join(dir, "out")
	measure := func(ctx context.Context, tool string, args ...string) ([]float64, error) {
		begun := time.Now()
		if _, err := bench.Output(ctx, tool, args...); err != nil {
			return nil, err
		}
		if err := syncFS(dir); err != nil {
			return nil, err
		}
		speed := float64(treeBytes) / (1 << 20) / time.Since(begun).Seconds()
		return []float64{speed}, errors.Join(os.RemoveAll(to), syncFS(dir))
	}
	return bench.Pair{
		Ours: func(ctx context.Context) ([]float64, error) {
			return measure(ctx, p.exe, "lun", "cp", "-r", p.image, "disk:/", to)
		},
		Peer: func(ctx context.Context) (figures []float64, err error) {
			err = p.mounted(ctx, func() error {
				figures, err = measure(ctx, "cp", "-a", p.mount, to)
				return err
			})
			return figures, err
		},
	}, nil
}

// openList lists a directory of a volume that was mounted for that, so that
// nobody knows anything of it.
func openList(ctx context.Context, dir string) (bench.Pair, error) {
	p, err := newPlace(ctx, dir, fillNames)
	if err != nil {
		return bench.Pair{}, err
	}
	return bench.Pair{Ours: func(ctx context.Context) ([]float64, error) {
		if _, err := bench.Output(ctx, p.exe, "lun", "mount", p.image, "disk", p.mount); err != nil {
			return nil, err
		}
		begun := time.Now()
		out, err := bench.Output(ctx, "find", filepath.Join(p.mount, "names"), "-ls")
		took := time.Since(begun)
		if lines := countLines(out); err == nil && lines != names+1 {
			err = fmt.Errorf("find lists %d lines, want %d", lines, names+1)
		}
		_, uerr := bench.Output(ctx, p.exe, "lun", "umount", p.mount)
		return []float64{took.Seconds()}, errors.Join(err, uerr)
	}}, nil
}

// place is the program, an image with a file system, and where that is mounted.
type place struct{ exe, image, mount string }

// newPlace makes an ext4 file system with what fill writes.
func newPlace(ctx context.Context, dir string, fill func(root string) error) (place, error) {
	p := place{filepath.Join(dir, "cleave"), filepath.Join(dir, "image"), filepath.Join(dir, "mount")}
	if os.Geteuid() != 0 {
		return p, fmt.Errorf("mounting takes root: %w", bench.ErrMissing)
	}
	if _, err := bench.Tool("mkfs.ext4"); err != nil {
		return p, err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", p.exe, "github.com/cleave-san/cleave/plugin/cmd/cleave")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return p, fmt.Errorf("go build: %w: %s", err, out)
	}
	if err := errors.Join(os.Mkdir(p.mount, 0o700), os.WriteFile(p.image, nil, 0o600), os.Truncate(p.image, imageBytes)); err != nil {
		return p, err
	}
	if _, err := bench.Output(ctx, "mkfs.ext4", "-q", "-F", "-N", "120000", p.image); err != nil {
		return p, err
	}
	return p, p.mounted(ctx, func() error { return fill(p.mount) })
}

// mounted has the kernel mount the image meanwhile.
func (p place) mounted(ctx context.Context, do func() error) error {
	if _, err := bench.Output(ctx, "mount", "-o", "loop", p.image, p.mount); err != nil {
		return err
	}
	err := do()
	_, uerr := bench.Output(context.WithoutCancel(ctx), "umount", p.mount)
	return errors.Join(err, uerr)
}

// syncFS waits until all of a directory's file system is on its disk.
func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(d.Fd())))
}
