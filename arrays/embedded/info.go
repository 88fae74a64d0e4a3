package embedded

import (
	"context"
	"fmt"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Volumes describes all volumes, by name.
func (a *Array) Volumes() []VolumeInfo {
	c, now := a.store.read(), a.o.Now()
	var out []VolumeInfo
	for _, v := range a.allVolumes() {
		if info, ok := v.info(c, now); ok {
			out = append(out, info)
		}
	}
	return out
}

// VolumeInfo describes one volume.
func (a *Array) VolumeInfo(ref driver.VolumeID) (VolumeInfo, error) {
	v, err := a.find(ref)
	if err != nil {
		return VolumeInfo{}, err
	}
	info, ok := v.info(a.store.read(), a.o.Now())
	if !ok {
		return info, driver.Errorf(driver.NotFound, "no volume %.80q", ref)
	}
	return info, nil
}

// SetResyncRate changes Options.ResyncRate.
func (a *Array) SetResyncRate(bytesPerSecond int64) { a.copies.set(bytesPerSecond) }

// WaitInSync returns when no mirror of the volume is being copied to and what a
// crash left is compared; nil does not say how many mirrors it has. Stalled copying is
// waited for as well, and named in the error when ctx ends.
func (a *Array) WaitInSync(ctx context.Context, ref driver.VolumeID) error {
	v, err := a.find(ref)
	if err != nil {
		return err
	}
	for {
		changed := v.waitChange()
		info, ok := v.info(a.store.read(), a.o.Now())
		if !ok {
			return driver.Errorf(driver.NotFound, "%s was deleted", v.label)
		}
		if info.State == driver.Broken {
			return driver.Errorf(driver.NotSynchronized, "%s is offline: %w", v.label, errOffline)
		}
		copying := info.Recovering > 0
		for _, m := range info.Replicas {
			copying = copying || m.State == driver.Unsynchronized
		}
		if !copying {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return driver.Errorf(driver.NotSynchronized, "%s: %s: %w", v.label, copyingText(info), context.Cause(ctx))
		case <-a.bg.Done():
			return fmt.Errorf("array: %w", lun.ErrClosed)
		}
	}
}

func copyingText(info VolumeInfo) string {
	for _, m := range info.Replicas {
		if m.State == driver.Unsynchronized {
			s := fmt.Sprintf("mirror %s has %d of %d bytes", m.ID, m.Copied, m.ToCopy)
			if m.Reason != "" {
				s += " and is stalled: " + m.Reason
			}
			return s
		}
	}
	return fmt.Sprintf("%d bytes are still to be compared after a crash", info.Recovering)
}
