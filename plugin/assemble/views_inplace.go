package assemble

import (
	"context"
	"errors"
	"fmt"

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

// InPlace implements engine.Recoverer.
func (v *views) InPlace(ctx context.Context, disks []lun.Device, want []engine.InGuest, discardOthers bool, begin func(engine.InPlacePlan) error) error {
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
