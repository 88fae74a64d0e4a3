// Package vdisk is the benchmarks of virtual-disk containers: what reading one
// costs, down to a raw file that is stable on disk, against qemu-img.
package vdisk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/cleave-san/cleave/integration/bench"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

// size of the disk, of which every fourth MiB holds data.
const size = 512 << 20

// kinds are containers by the name of their row, as qemu-img makes them.
var kinds = []struct{ name, format, options string }{
	{"qcow2", "qcow2", ""},
	{"qcow2-512", "qcow2", "cluster_size=512"},
	{"qcow2-zstd", "qcow2", "compression_type=zstd"},
	{"vhdx", "vhdx", ""},
	{"vhd", "vpc", "force_size=on"},
	{"vmdk", "vmdk", ""},
	{"vmdk-stream", "vmdk", "subformat=streamOptimized"},
}

// Family gives the benchmarks of containers.
func Family(bench.Options) bench.Family {
	f := bench.Family{Name: "vdisk"}
	for _, k := range kinds {
		f.Benchmarks = append(f.Benchmarks, bench.Benchmark{
			Rows:     []bench.Row{{Name: "vdisk/convert/" + k.name, Unit: "MiB/s", Better: bench.Higher}},
			PeerName: "qemu-img convert -t writeback", Runs: 3,
			Open: func(ctx context.Context, dir string) (bench.Pair, error) {
				return convert(ctx, dir, k.format, k.options)
			},
		})
	}
	return f
}

func convert(ctx context.Context, dir, format, options string) (bench.Pair, error) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return bench.Pair{}, fmt.Errorf("qemu-img: %w", bench.ErrMissing)
	}
	raw, disk := filepath.Join(dir, "raw"), filepath.Join(dir, "disk")
	if err := fill(raw); err != nil {
		return bench.Pair{}, err
	}
	arg := []string{"convert", "-f", "raw", "-O", format}
	if options == "compression_type=zstd" {
		arg = append(arg, "-c")
	}
	if options != "" {
		arg = append(arg, "-o", options)
	}
	if err := qemu(ctx, append(arg, raw, disk)...); err != nil {
		return bench.Pair{}, err
	}
	if err := os.Remove(raw); err != nil {
		return bench.Pair{}, err
	}
	out := filepath.Join(dir, "out")
	return bench.Pair{
		Ours: rate(out, func() error { return ours(ctx, disk, out) }),
		Peer: rate(out, func() error {
			return qemu(ctx, "convert", "-t", "writeback", "-f", format, "-O", "raw", disk, out)
		}),
	}, nil
}

// rate measures MiB of the guest's disk a second.
func rate(out string, do func() error) bench.Side {
	return func(context.Context) ([]float64, error) {
		start := time.Now()
		err := do()
		took := time.Since(start)
		return []float64{size >> 20 / took.Seconds()}, errors.Join(err, os.Remove(out))
	}
}

func ours(ctx context.Context, disk, out string) error {
	f, err := open.File(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := open.Probe(ctx, open.Source{Name: disk, Device: f, Containers: true})
	if err != nil {
		return err
	}
	defer c.Close()
	return recovery.Copy(ctx, c.Disks[0].Device, out, nil)
}

func qemu(ctx context.Context, arg ...string) error {
	if out, err := exec.CommandContext(ctx, "qemu-img", arg...).CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img %v: %w: %s", arg, err, out)
	}
	return nil
}

// fill makes the content: bytes that compress by about half, and holes.
func fill(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := rand.NewChaCha8([32]byte{6})
	b := make([]byte, 1<<20)
	for off := int64(0); off < size; off += 4 << 20 {
		for i := 0; i < len(b); i += 8192 {
			_, _ = r.Read(b[i : i+4096]) // never fails
		}
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
	}
	return f.Truncate(size)
}
