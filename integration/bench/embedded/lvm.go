package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/integration/bench"
	"github.com/cleave-san/cleave/integration/lab"
)

// lvmRows are the same questions put to LVM: raid1 with `lvconvert
// --splitmirrors 1 --trackchanges`, in a VM, since it needs a kernel of its own.
// A machine under software emulation can't be compared with this one, so each
// side is measured against its own raw device first, and the row compares these
// two shares: ours is the array against plain files, the peer's is raid1 against
// the VM's disks, with fio. The disks are files on tmpfs, as are our pools.
func lvmRows(o bench.Options) ([]bench.Benchmark, func() error) {
	vm := &lvm{memory: o.Memory}
	row := func(name, unit string, better bench.Better, open func(ctx context.Context, dir string) (bench.Pair, error)) bench.Benchmark {
		return bench.Benchmark{
			Rows:     []bench.Row{{Name: "embedded/lvm/" + name, Unit: unit, Better: better}},
			PeerName: "LVM raid1 in a VM", Runs: 3, Longest: 5 * time.Minute, // the VM starts for the first
			Open: func(ctx context.Context, _ string) (bench.Pair, error) {
				if err := vm.boot(ctx); err != nil {
					return bench.Pair{}, err
				}
				dir, err := os.MkdirTemp(o.Memory, "lvm-")
				if err != nil {
					return bench.Pair{}, err
				}
				p, err := open(ctx, dir)
				end := p.Close
				p.Close = func() error { return errors.Join(end(), os.RemoveAll(dir)) }
				if err != nil {
					return bench.Pair{}, errors.Join(err, os.RemoveAll(dir))
				}
				return p, nil
			},
		}
	}
	var out []bench.Benchmark
	for _, p := range patterns {
		out = append(out, row("write/"+p.name, "of raw", bench.Higher, func(ctx context.Context, dir string) (bench.Pair, error) { return vm.transfers(ctx, dir, p, true) }))
	}
	for _, p := range patterns {
		out = append(out, row("read/"+p.name, "of raw", bench.Higher, func(ctx context.Context, dir string) (bench.Pair, error) { return vm.transfers(ctx, dir, p, false) }))
	}
	out = append(out,
		row("resync/rate", "of raw", bench.Higher, vm.resyncs),
		row("hold", "raw writes", bench.Lower, vm.holds))
	return out, vm.close
}

// lvm is a VM with a raid1 volume on two disks, and two more that are raw.
type lvm struct {
	memory string
	once   sync.Once
	err    error
	m      *lab.Machine
	dir    string
}

const (
	lvmDisk   = 768 * mib
	lvmVolume = 512 * mib
	// lvmChanged is as large a part of the volume as changed is of ours.
	lvmChanged = changed * lvmVolume / (4 * gib) // regions
)

func (l *lvm) boot(ctx context.Context) error {
	l.once.Do(func() { l.err = l.start(ctx) })
	return l.err
}

func (l *lvm) start(ctx context.Context) error {
	if _, err := bench.Tool("qemu-system-x86_64"); err != nil {
		return err
	}
	if _, err := bench.Tool("fio"); err != nil {
		return err
	}
	var err error
	if l.dir, err = os.MkdirTemp(l.memory, "vm-"); err != nil {
		return err
	}
	var disks []lab.Disk
	for i := range 4 {
		name := filepath.Join(l.dir, fmt.Sprintf("disk%d", i))
		f, err := os.Create(name)
		if err == nil {
			err = errors.Join(f.Truncate(lvmDisk), f.Close())
		}
		if err != nil {
			return err
		}
		disks = append(disks, lab.Disk{File: name, Bus: lab.VirtioBlk, Cache: "writeback"})
	}
	l.m, err = lab.Boot(ctx, lab.VM{Name: "lvm", Kind: lab.Proof, Disks: disks, CPUs: 2, Modules: []string{"dm-raid", "raid1"}})
	if err != nil {
		return err
	}
	_, err = l.run(ctx, fmt.Sprintf(`set -e
pvcreate -q -y /dev/vda /dev/vdb
vgcreate -q -y vgbench /dev/vda /dev/vdb
lvcreate -q -y -Wn --type raid1 -m 1 -L %db -n r vgbench
vgmknodes vgbench
for d in vgbench/r vdc vdd; do dd if=/dev/urandom of=/dev/$d bs=1M count=%d oflag=direct status=none; done
`+untilSynced, lvmVolume, lvmVolume/mib))
	return err
}

// untilSynced waits for raid1 to have copied what it has to.
const untilSynced = `until [ "$(lvs --noheadings -o sync_percent vgbench/r | tr -d ' ')" = 100.00 ]; do :; done
`

func (l *lvm) run(ctx context.Context, script string) (string, error) {
	out, err := l.m.Run(ctx, script)
	if err != nil {
		return "", fmt.Errorf("in the VM: %w: %.300s", err, strings.TrimSpace(out.Stderr))
	}
	return out.Stdout, nil
}

func (l *lvm) close() error {
	var err error
	if l.m != nil {
		err = l.m.Close()
	}
	if l.dir != "" {
		err = errors.Join(err, os.RemoveAll(l.dir))
	}
	return err
}

// fioResult is what is used of fio's report on one job.
type fioResult struct {
	Rate float64 `json:"bw_bytes"` // a second
	Wait struct {
		Mean float64 `json:"mean"` // ns
		Max  float64 `json:"max"`  // ns
	} `json:"clat_ns"`
}

// fio runs a job on each device at once, while script runs, and reports the
// first. It lasts for some seconds.
func (l *lvm) fio(ctx context.Context, p pattern, write bool, script string, devices ...string) (fioResult, error) {
	mode := "read"
	if write {
		mode = "write"
	}
	rw := mode
	if p.random {
		rw = "rand" + mode
	}
	job := fmt.Sprintf("fio --output-format=json --output=/run/fio.json --direct=1 --ioengine=libaio --iodepth=%d --bs=%d --rw=%s --size=%d --time_based --runtime=4",
		p.depth, p.length, rw, int64(lvmVolume))
	for _, d := range devices {
		job += " --name=" + filepath.Base(d) + " --filename=" + d
	}
	text, err := l.run(ctx, "set -e\n"+job+" &\n"+script+"\nwait\ncat /run/fio.json")
	if err != nil {
		return fioResult{}, err
	}
	var report struct {
		Jobs []struct {
			Error       int `json:"error"`
			Read, Write fioResult
		} `json:"jobs"`
	}
	if err := json.Unmarshal([]byte(text), &report); err != nil || len(report.Jobs) == 0 || report.Jobs[0].Error != 0 {
		return fioResult{}, fmt.Errorf("fio's report: %w: %.200q", err, text)
	}
	if write {
		return report.Jobs[0].Write, nil
	}
	return report.Jobs[0].Read, nil
}

// transfers compares shares of the raw rate. Writes are those to two raw devices
// at once, as on our side.
func (l *lvm) transfers(ctx context.Context, dir string, p pattern, write bool) (bench.Pair, error) {
	const hot = 512 * mib
	ours, plain, err := devices(ctx, dir)
	if err != nil {
		return bench.Pair{}, err
	}
	pair := bench.Pair{Close: closeBoth(ours, plain)}
	side := p.writing
	raw := []string{"/dev/vdc", "/dev/vdd"}
	if !write {
		side = func(d device) bench.Side { return p.reading(d, hot) }
		raw = raw[:1]
		for _, d := range []device{ours, plain} {
			if err := fillUp(ctx, d, hot); err != nil {
				return bench.Pair{}, errors.Join(err, pair.Close())
			}
		}
	}
	mine, its := side(ours), side(plain)
	pair.Ours = func(ctx context.Context) ([]float64, error) { return share(ctx, mine, its) }
	pair.Peer = func(ctx context.Context) ([]float64, error) {
		two, err := l.fio(ctx, p, write, "", "/dev/vgbench/r")
		if err != nil {
			return nil, err
		}
		one, err := l.fio(ctx, p, write, "", raw...)
		return []float64{two.Rate / one.Rate}, err
	}
	return pair, nil
}

// share is the first figure of one side by that of another.
func share(ctx context.Context, of, by bench.Side) ([]float64, error) {
	x, err := of(ctx)
	if err != nil {
		return nil, err
	}
	y, err := by(ctx)
	if err != nil {
		return nil, err
	}
	return []float64{x[0] / y[0]}, nil
}

// resyncs compares the rates at which changed bytes get to the mirror, each with
// that of a plain copy of as many.
func (l *lvm) resyncs(ctx context.Context, dir string) (bench.Pair, error) {
	cp, err := newCopier(ctx, dir)
	if err != nil {
		return bench.Pair{}, err
	}
	m, err := newMirrored(ctx, dir, 4*gib)
	if err != nil {
		return bench.Pair{}, err
	}
	n := 0
	second := func(x []float64, err error) ([]float64, error) {
		if err != nil {
			return nil, err
		}
		return x[1:], nil
	}
	return bench.Pair{
		Close: m.close,
		Ours: func(ctx context.Context) ([]float64, error) {
			n++
			return share(ctx,
				func(ctx context.Context) ([]float64, error) {
					return second(m.resync(ctx, driver.Tag(fmt.Sprintf("lvm%d", n))))
				},
				func(ctx context.Context) ([]float64, error) { return second(cp.run(ctx)) })
		},
		Peer: func(ctx context.Context) ([]float64, error) {
			text, err := l.run(ctx, fmt.Sprintf(`set -e
ms() { read -r up _ </proc/uptime; echo "${up%%.*}${up#*.}0"; }
lvconvert -q -y --splitmirrors 1 --trackchanges vgbench/r >/dev/null
fio --output=/run/fio.out --direct=1 --ioengine=libaio --iodepth=8 --bs=%d --rw=randwrite --size=%d --io_size=%d --name=c --filename=/dev/vgbench/r
a=$(ms)
lvconvert -q -y --merge vgbench/r_rimage_1 >/dev/null
%sb=$(ms)
dd if=/dev/vdc of=/dev/vdd bs=1M count=%d iflag=direct oflag=direct conv=fsync status=none
c=$(ms)
echo $((b - a)) $((c - b))`, region, int64(lvmVolume), int64(lvmChanged*region), untilSynced, lvmChanged*region/mib))
			if err != nil {
				return nil, err
			}
			f := strings.Fields(text)
			if len(f) != 2 {
				return nil, fmt.Errorf("times %q", text)
			}
			resync, err := strconv.ParseFloat(f[0], 64)
			if err != nil {
				return nil, err
			}
			plain, err := strconv.ParseFloat(f[1], 64)
			return []float64{max(plain, 10) / resync}, err
		},
	}, nil
}

// holds compares how long a split holds a writer at most, counted in raw writes.
func (l *lvm) holds(ctx context.Context, dir string) (bench.Pair, error) {
	h, err := newHolder(ctx, dir, 1, gib)
	if err != nil {
		return bench.Pair{}, err
	}
	raw, err := newPlain(dir, plainSize)
	if err != nil {
		return bench.Pair{}, errors.Join(err, h.close())
	}
	p := patterns[1]
	write := p.writing(raw)
	return bench.Pair{
		Close: func() error { return errors.Join(h.close(), raw.close()) },
		Ours: func(ctx context.Context) ([]float64, error) {
			held, err := h.p99(ctx)
			if err != nil {
				return nil, err
			}
			rate, err := write(ctx)
			if err != nil {
				return nil, err
			}
			return []float64{held[0] / 1000 * rate[0]}, nil
		},
		Peer: func(ctx context.Context) ([]float64, error) {
			split, err := l.fio(ctx, p, true, "sleep 1; lvconvert -q -y --splitmirrors 1 --trackchanges vgbench/r >/dev/null", "/dev/vgbench/r")
			if err != nil {
				return nil, err
			}
			if _, err := l.run(ctx, "lvconvert -q -y --merge vgbench/r_rimage_1 >/dev/null\n"+untilSynced); err != nil {
				return nil, err
			}
			one, err := l.fio(ctx, p, true, "", "/dev/vdc")
			return []float64{split.Wait.Max / 1e9 * one.Rate / float64(p.length)}, err
		},
	}, nil
}
