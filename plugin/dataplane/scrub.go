package dataplane

import (
	"context"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
)

func (p *plane) startScrub(ref driver.VolumeID, r remote.ScrubRequest) (remote.Volume, error) {
	if err := p.array.StartScrub(ref, embedded.ScrubOptions{Repair: r.Repair}); err != nil {
		return remote.Volume{}, err
	}
	v, err := p.array.VolumeInfo(ref)
	return p.volume(v), err
}

func (p *plane) waitScrub(ctx context.Context, ref driver.VolumeID) (remote.Scrub, error) {
	r, err := p.array.WaitScrub(ctx, ref)
	return scrubReport(r), err
}

func scrubReport(r embedded.ScrubReport) remote.Scrub {
	out := remote.Scrub{
		Begun: r.Begun, Ended: r.Ended, Repair: r.Repair, Size: r.Size, Done: r.Done, Compared: r.Compared, Mirrors: r.Mirrors,
		Differing: r.Differing, Repaired: r.Repaired, Places: r.Places, Rate: r.Rate, Remaining: r.Remaining, Reason: r.Reason,
	}
	for _, d := range r.Differences {
		x := remote.Difference{Off: d.Off, Len: d.Len, Repaired: d.Repaired}
		for _, m := range d.Mirrors {
			x.Mirrors = append(x.Mirrors, remote.MirrorHash(m))
		}
		out.Differences = append(out.Differences, x)
	}
	return out
}
