package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/integration/bench"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/iscsi/initiator"
	"github.com/cleave-san/cleave/iscsi/mask"
	"github.com/cleave-san/cleave/iscsi/target"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

// large is a volume of 1 TiB with a million exceptions.
var large = image{origin: 1 << 40, exceptions: 1_000_000, spacing: 64 << 10}

// opens are the rows about opening the view of a large volume: from devices to
// the first byte that can be read, with nothing of the file in the page cache.
// Memory is all that is allocated on the way, garbage included.
func opens() []bench.Benchmark {
	return []bench.Benchmark{
		{
			Rows: []bench.Row{
				{Name: "recovery/open/file/time", Unit: "s", Better: bench.Lower, Limit: 1, Goal: 1},
				{Name: "recovery/open/file/memory", Unit: "MiB", Better: bench.Lower, Limit: 64, Goal: 1},
			},
			Open: func(_ context.Context, dir string) (bench.Pair, error) {
				path := filepath.Join(dir, "large.img")
				if err := large.write(path); err != nil {
					return bench.Pair{}, err
				}
				return bench.Pair{Ours: func(ctx context.Context) ([]float64, error) {
					d, err := uncached(path)
					if err != nil {
						return nil, err
					}
					defer d.Close()
					return opened(ctx, d, dir)
				}}, nil
			},
		},
		{
			Rows: []bench.Row{{Name: "recovery/open/iscsi/time", Unit: "s", Better: bench.Lower, Limit: 2, Goal: 1}},
			Open: openOverISCSI,
		},
	}
}

// opened measures seconds and MiB of opening a view.
func opened(ctx context.Context, d lun.Device, dir string) ([]float64, error) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begun := time.Now()
	v, err := view(ctx, d, dir)
	if err != nil {
		return nil, err
	}
	b := make([]byte, 4096)
	_, err = v.Devices[0].ReadAt(b, start)
	took := time.Since(begun)
	runtime.ReadMemStats(&after)
	if n := v.Volumes[0].Exceptions; n != large.exceptions {
		err = errors.Join(err, fmt.Errorf("the view has %d exceptions", n))
	}
	return []float64{took.Seconds(), float64(after.TotalAlloc-before.TotalAlloc) / (1 << 20)}, errors.Join(err, v.Close())
}

func view(ctx context.Context, d lun.Device, dir string) (*recovery.View, error) {
	c, err := open.Probe(ctx, open.Source{Name: "disk", Device: d})
	if err != nil {
		return nil, err
	}
	return recovery.OpenView(ctx, c, recovery.ViewOptions{Dir: dir})
}

// uncached opens a file of which the page cache holds nothing.
func uncached(path string) (*open.FileDevice, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return open.FromFile(f)
}

const (
	targetName = iscsi.Name("iqn.2026-01.test:bench")
	ourName    = iscsi.Name("iqn.2026-01.test:reader")
)

// openOverISCSI has the image served by our own target, over loopback.
func openOverISCSI(ctx context.Context, dir string) (_ bench.Pair, err error) {
	path := filepath.Join(dir, "large.img")
	if err := large.write(path); err != nil {
		return bench.Pair{}, err
	}
	file, err := uncached(path)
	if err != nil {
		return bench.Pair{}, err
	}
	s := target.New(target.Options{Logger: slog.New(slog.DiscardHandler)})
	closeAll := func() error { return errors.Join(s.Close(), file.Close()) }
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll())
		}
	}()
	if err := s.SetMask(targetName, ourName, mask.Grant{LUN: 0}); err != nil {
		return bench.Pair{}, err
	}
	if err := s.AddTarget(targetName, "bench"); err != nil {
		return bench.Pair{}, err
	}
	if _, err := s.AddLUN(targetName, 0, target.LUN{Device: file, Identity: lun.NewIdentity()}); err != nil {
		return bench.Pair{}, err
	}
	portal, err := s.Listen(ctx, netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		return bench.Pair{}, err
	}
	ours := func(ctx context.Context) ([]float64, error) {
		d, err := initiator.Open(ctx, initiator.Options{Portals: []string{portal.String()}, Target: targetName, Initiator: ourName, ReadOnly: true})
		if err != nil {
			return nil, err
		}
		figures, err := opened(ctx, d, dir)
		if err = errors.Join(err, d.Close()); err != nil {
			return nil, err
		}
		return figures[:1], nil
	}
	return bench.Pair{Ours: ours, Close: closeAll}, nil
}
