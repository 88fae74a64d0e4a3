package assemble

import (
	"context"
	"fmt"
	"slices"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/plugin/cli"
)

func (s storage) AddMirror(ctx context.Context, name, pool string) (cli.Volume, error) {
	_, err := s.Client.AddMirror(ctx, driver.VolumeID(name), pool)
	return s.one(ctx, name, err)
}

func (s storage) RemoveMirror(ctx context.Context, name, mirror string) (cli.Volume, error) {
	id, err := lun.ParseIdentity(mirror)
	if err != nil {
		return cli.Volume{}, driver.Errorf(driver.InvalidRequest, "mirror: %w", err)
	}
	return s.one(ctx, name, s.Client.RemoveMirror(ctx, driver.VolumeID(name), id))
}

func (s storage) RepairVolume(ctx context.Context, name string) (cli.Volume, error) {
	v, err := s.Client.RepairVolume(ctx, driver.VolumeID(name))
	return volume(v), err
}

func (s storage) Splits(ctx context.Context) ([]cli.Split, error) {
	ss, err := s.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]cli.Split, 0, len(ss))
	for _, x := range ss {
		out = append(out, cli.Split{
			ID: string(x.ID), Tag: string(x.Tag), Volume: x.VolumeName, VolumeID: string(x.Volume), Size: x.Size, NAA: x.NAA,
			Method: string(x.Method), State: string(x.State), Group: x.Group, At: x.At, Pool: x.Pool, File: x.File, Reason: x.Reason,
			UsedBy: x.UsedBy, LUN: exposed(x.LUN), ResyncBytes: x.ResyncBytes, ResyncTime: x.ResyncTime,
		})
	}
	return out, nil
}

// made describes splits that a change has left.
func (s storage) made(ctx context.Context, ds ...driver.Snapshot) ([]cli.Split, error) {
	all, err := s.Splits(ctx)
	if err != nil {
		return nil, fmt.Errorf("it is done, but can't be described: %w", err)
	}
	out := make([]cli.Split, 0, len(ds))
	for _, d := range ds {
		i := slices.IndexFunc(all, func(x cli.Split) bool { return x.ID == string(d.ID) })
		if i < 0 {
			return nil, driver.Errorf(driver.NotFound, "split %s was made, and is gone already", d.ID)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// exchanged describes the split that an exchange has left.
func (s storage) exchanged(ctx context.Context, d driver.Snapshot, err error) (cli.Split, error) {
	if err != nil {
		return cli.Split{}, err
	}
	out, err := s.made(ctx, d)
	if err != nil {
		return cli.Split{}, err
	}
	return out[0], nil
}

func (s storage) SplitVolumes(ctx context.Context, tag string, volumes []string, allowUnmirrored bool) ([]cli.Split, error) {
	ids := make([]driver.VolumeID, 0, len(volumes))
	for _, v := range volumes {
		ids = append(ids, driver.VolumeID(v))
	}
	o := driver.PrepareOptions{Tag: driver.Tag(tag), AllowUnmirrored: allowUnmirrored}
	if err := s.Prepare(ctx, ids, o); err != nil {
		return nil, err
	}
	ds, err := s.SplitGroup(ctx, o.Tag, ids)
	if err != nil {
		return nil, err
	}
	return s.made(ctx, ds...)
}

// check takes the ID of a split that is not there for a slip, though the array
// would call what is asked success.
func (s storage) check(ctx context.Context, split string) error {
	ss, err := s.Snapshots(ctx)
	if err == nil && !slices.ContainsFunc(ss, func(x remote.Snapshot) bool { return string(x.ID) == split }) {
		err = driver.Errorf(driver.NotFound, "no split %.80q", split)
	}
	return err
}

func (s storage) Resync(ctx context.Context, split string) error {
	if err := s.check(ctx, split); err != nil {
		return err
	}
	return s.Client.Resync(ctx, driver.SnapshotID(split))
}

func (s storage) DeleteSplit(ctx context.Context, split string) error {
	if err := s.check(ctx, split); err != nil {
		return err
	}
	return s.Delete(ctx, driver.SnapshotID(split))
}

func (s storage) Revert(ctx context.Context, split string) (cli.Split, error) {
	safe, err := s.Client.Revert(ctx, driver.SnapshotID(split))
	return s.exchanged(ctx, safe, err)
}

func (s storage) Reverse(ctx context.Context, split string) (cli.Split, error) {
	other, err := s.Client.Reverse(ctx, driver.SnapshotID(split))
	return s.exchanged(ctx, other, err)
}

func (s storage) Break(ctx context.Context, split, name string) (cli.Volume, error) {
	_, err := s.Client.Break(ctx, driver.SnapshotID(split), name)
	return s.one(ctx, name, err)
}

func (s storage) Changes(ctx context.Context, volume, from, to string) (cli.Changes, error) {
	ch, err := s.Client.Changes(ctx, driver.VolumeID(volume), driver.SnapshotID(from), driver.SnapshotID(to))
	if err != nil {
		return cli.Changes{}, err
	}
	out := cli.Changes{Granularity: ch.Granularity, Regions: make([]cli.Region, 0, len(ch.Regions))}
	for _, e := range ch.Regions {
		out.Regions = append(out.Regions, cli.Region{Offset: e.Off, Length: e.Len})
		out.Total += e.Len
	}
	return out, nil
}
