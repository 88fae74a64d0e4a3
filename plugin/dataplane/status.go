package dataplane

import (
	"fmt"
	"net/http"
	"os"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/iscsi/mask"
)

func (p *plane) status() remote.Status {
	s := remote.Status{
		IQN: string(p.c.IQN), Portals: p.portalNames(), Listening: []remote.Portal{}, Started: p.started.UTC(), PID: os.Getpid(),
		Sessions: []remote.Session{}, LUNs: []remote.LUN{}, Pools: []remote.Pool{}, Problems: []string{},
		MaxLUNs: mask.MaxLUN,
	}
	for _, x := range p.portals {
		s.Listening = append(s.Listening, remote.Portal{Address: x.Addr.String(), Group: x.Group})
	}
	for _, x := range p.target.Sessions() {
		s.Sessions = append(s.Sessions, remote.Session{
			Initiator: string(x.Initiator), Target: string(x.Target), Remote: x.Remote.String(), Since: x.Since.UTC(),
		})
	}
	p.mu.Lock()
	for _, l := range p.rec.LUNs {
		d := p.describe(l)
		s.LUNs = append(s.LUNs, d)
		if d.Problem != "" {
			s.Problems = append(s.Problems, fmt.Sprintf("LUN %d (%s %s): %s", d.LUN, d.Kind, d.Of, d.Problem))
		}
	}
	p.mu.Unlock()
	for _, x := range p.array.Pools() {
		s.Pools = append(s.Pools, remote.Pool{
			Name: x.Name, Dir: x.Dir, Size: x.Size, Free: x.Free, Limit: x.Limit, Used: x.Used, Provisioned: x.Provisioned,
			Health: string(x.Health), Reflink: x.Reflink, Reason: x.Reason,
		})
		if x.Health == embedded.HealthLow {
			s.Problems = append(s.Problems, fmt.Sprintf("pool %s: little room is left: %d of %d bytes are free", x.Name, x.Free, x.Size))
		} else if x.Reason != "" {
			s.Problems = append(s.Problems, fmt.Sprintf("pool %s: %s", x.Name, x.Reason))
		}
	}
	for _, v := range p.array.Volumes() {
		if v.State != driver.Synchronized {
			s.Problems = append(s.Problems, fmt.Sprintf("volume %s is %s", v.Name, v.State))
		}
		for _, m := range v.Replicas {
			if m.Reason != "" {
				s.Problems = append(s.Problems, fmt.Sprintf("mirror %s of volume %s: %s", m.ID, v.Name, m.Reason))
			}
		}
	}
	return s
}

func (p *plane) createVolume(r *http.Request) (any, error) {
	return with(func(r *http.Request, in remote.CreateVolumeRequest) (any, error) {
		v, err := p.array.CreateVolume(r.Context(), embedded.CreateVolume{
			Name: in.Name, Size: in.Size, Pools: in.Pools, Snapshots: embedded.SnapshotPolicy(in.Snapshots),
		})
		if err != nil {
			return nil, err
		}
		return p.volume(v), nil
	})(r)
}
