package assemble

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/recovery"
	"github.com/cleave-san/cleave/lun/recovery/worker"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/engine"
)

// Rewritten implements engine.Recoverer.
func (v *views) Rewritten(ctx context.Context, socket, export string, size int64) ([]lun.Extent, error) {
	return worker.Rewritten(ctx, socket, export, size)
}

// leaving is how long a reader that has hung up may take to be gone.
const leaving = time.Second

// Readers implements engine.Recoverer. A connection that was accepted bears the
// path of its listener (proc_pid_net(5), unix); readers in another network name
// space are not seen.
func (v *views) Readers(ctx context.Context, socket string) (int, error) {
	limit, cancel := context.WithTimeout(ctx, leaving)
	defer cancel()
	look := time.NewTicker(leaving / 50)
	defer look.Stop()
	for {
		n, err := connections("/proc/net/unix", socket)
		if n == 0 || err != nil {
			return n, err
		}
		select {
		case <-look.C:
		case <-limit.Done():
			return n, ctx.Err()
		}
	}
}

// connections counts the connected sockets of a path in a table as the kernel
// prints it.
func connections(table, path string) (n int, err error) {
	f, err := os.Open(table)
	if err != nil {
		return 0, fmt.Errorf("connections to a view: %w", err)
	}
	defer f.Close()
	const connected = "03"
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// Num RefCount Protocol Flags Type St Inode Path
		w := strings.Fields(lines.Text())
		if len(w) >= 8 && w[5] == connected && strings.HasSuffix(lines.Text(), " "+path) {
			n++
		}
	}
	if err := lines.Err(); err != nil {
		return 0, fmt.Errorf("connections to a view: %w", err)
	}
	return n, nil
}

// InPlace implements engine.Recoverer.
func (v *views) InPlace(ctx context.Context, disks engine.Disks, want []engine.InGuest, discardOthers bool, begin func(engine.InPlacePlan) error) error {
	s := v.spec(disks)
	for _, w := range want {
		s.Snapshots = append(s.Snapshots, w.Snapshot)
	}
	_, err := worker.InPlace(ctx, s, discardOthers, func(p *worker.Plan) error {
		plan := engine.InPlacePlan{Rewritten: p.Rewritten, Bytes: p.Bytes, Done: p.Done}
		for _, x := range p.Volumes {
			plan.Volumes = append(plan.Volumes, engine.InPlaceVolume{Volume: x.VolumeUUID, Mode: string(x.Mode), Discarded: x.Discarded})
		}
		return begin(plan)
	}, nil)
	if errors.Is(err, recovery.ErrDiscards) {
		return fmt.Errorf("%w: %w", orchestrator.ErrUsage, err)
	}
	return err
}
