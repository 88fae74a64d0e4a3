package assemble

import (
	"context"
	"fmt"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/plugin/cli"
)

// storage is the data plane as the command line administers it.
type storage struct{ *remote.Client }

var _ cli.Storage = storage{}

func (s storage) Volumes(ctx context.Context) ([]cli.Volume, error) {
	vs, err := s.Client.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]cli.Volume, 0, len(vs))
	for _, v := range vs {
		out = append(out, volume(v))
	}
	return out, nil
}

func volume(v remote.Volume) cli.Volume {
	out := cli.Volume{
		Name: v.Name, ID: string(v.ID), Size: v.Size, NAA: v.Identity.NAAString(), State: string(v.State),
		Wanted: v.Wanted, Policy: v.Policy, UsedBy: v.UsedBy, Created: v.Created, Mirrors: []cli.Mirror{}, LUN: exposed(v.LUN),
		UnmirroredSince: v.UnmirroredSince, Remaining: v.Remaining, Recovering: v.Recovering,
	}
	for _, m := range v.Replicas {
		out.Mirrors = append(out.Mirrors, cli.Mirror{
			ID: m.ID.String(), Pool: m.Pool, File: m.File, State: string(m.State), Reason: m.Reason,
			Copied: m.Copied, ToCopy: m.ToCopy, Rate: m.Rate, Remaining: m.Remaining,
		})
	}
	for _, id := range v.Snapshots {
		out.Snapshots = append(out.Snapshots, string(id))
	}
	if v.Scrub != nil {
		s := scrub(*v.Scrub)
		out.Scrub = &s
	}
	return out
}

func scrub(r remote.Scrub) cli.Scrub {
	out := cli.Scrub{
		Begun: r.Begun, Ended: r.Ended, Repair: r.Repair, Size: r.Size, Done: r.Done, Compared: r.Compared, Mirrors: r.Mirrors,
		Differing: r.Differing, Repaired: r.Repaired, Places: r.Places, Remaining: r.Remaining, Reason: r.Reason,
	}
	for _, d := range r.Differences {
		x := cli.ScrubDifference{Off: d.Off, Len: d.Len, Repaired: d.Repaired}
		for _, m := range d.Mirrors {
			x.Mirrors = append(x.Mirrors, cli.ScrubMirror{ID: m.ID.String(), Pool: m.Pool, SHA256: m.SHA256})
		}
		out.Differences = append(out.Differences, x)
	}
	return out
}

func (s storage) StartScrub(ctx context.Context, name string, repair bool) (cli.Volume, error) {
	v, err := s.Client.StartScrub(ctx, driver.VolumeID(name), repair)
	return volume(v), err
}

func (s storage) WaitScrub(ctx context.Context, name string) (cli.Scrub, error) {
	r, err := s.Client.WaitScrub(ctx, driver.VolumeID(name))
	return scrub(r), err
}

func (s storage) StopScrub(ctx context.Context, name string) error {
	return s.Client.StopScrub(ctx, driver.VolumeID(name))
}

func exposed(l *remote.LUN) *cli.Exposed {
	if l == nil {
		return nil
	}
	return &cli.Exposed{IQN: l.IQN, LUN: l.LUN, Portals: l.Portals, Initiators: l.Initiators, ReadOnly: !l.Writable}
}

// one describes a volume after it was changed.
func (s storage) one(ctx context.Context, name string, err error) (cli.Volume, error) {
	if err != nil {
		return cli.Volume{}, err
	}
	v, err := s.Volume(ctx, driver.VolumeID(name))
	return volume(v), err
}

func (s storage) CreateVolume(ctx context.Context, name string, size int64, pools []string, snapshots string) (cli.Volume, error) {
	v, err := s.Client.CreateVolume(ctx, remote.CreateVolumeRequest{Name: name, Size: size, Pools: pools, Snapshots: snapshots})
	return volume(v), err
}

func (s storage) SetSnapshotPolicy(ctx context.Context, name, policy string) (cli.Volume, error) {
	v, err := s.Client.SetSnapshotPolicy(ctx, driver.VolumeID(name), policy)
	return volume(v), err
}

func (s storage) ResizeVolume(ctx context.Context, name string, size int64) (cli.Volume, error) {
	v, err := s.Client.ResizeVolume(ctx, driver.VolumeID(name), size)
	return volume(v), err
}

// DeleteVolume takes a name that is not there for a slip, though the array
// would call it success.
func (s storage) DeleteVolume(ctx context.Context, name string) error {
	v, err := s.Volume(ctx, driver.VolumeID(name))
	if err != nil {
		return err
	}
	return s.Client.DeleteVolume(ctx, v.ID)
}

func (s storage) ExposeVolume(ctx context.Context, name string, initiators []string, readOnly bool) (cli.Volume, error) {
	_, err := s.Client.ExposeVolume(ctx, driver.VolumeID(name), initiators, readOnly)
	return s.one(ctx, name, err)
}

func (s storage) UnexposeVolume(ctx context.Context, name string) error {
	return s.Client.UnexposeVolume(ctx, driver.VolumeID(name))
}

func (s storage) Initiators(ctx context.Context) ([]cli.Initiator, error) {
	is, err := s.Client.Initiators(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]cli.Initiator, 0, len(is))
	for _, i := range is {
		x := cli.Initiator{IQN: i.IQN, User: i.User, Mutual: i.MutualUser, Sessions: i.Sessions}
		for _, l := range i.LUNs {
			x.LUNs = append(x.LUNs, fmt.Sprint(l))
		}
		out = append(out, x)
	}
	return out, nil
}

func (s storage) AddInitiator(ctx context.Context, i cli.Initiator, secretFile, mutualFile string) error {
	return s.SetInitiator(ctx, remote.Initiator{
		IQN: i.IQN, User: i.User, SecretFile: secretFile, MutualUser: i.Mutual, MutualSecretFile: mutualFile,
	})
}

func (s storage) Pools(ctx context.Context) ([]cli.Pool, error) {
	ps, err := s.Client.Pools(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]cli.Pool, 0, len(ps))
	for _, p := range ps {
		out = append(out, cli.Pool(p))
	}
	return out, nil
}
