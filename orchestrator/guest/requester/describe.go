package requester

import (
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/guest/wire"
)

// Describe puts what a probe found into the words of the orchestrator.
func Describe(p wire.Probe, g *orchestrator.Guest) {
	can := 0
	for _, v := range p.Volumes {
		if v.Cannot == "" {
			can++
		}
		g.Volumes = append(g.Volumes, orchestrator.GuestVolume(v))
	}
	for _, a := range p.Apps {
		g.Writers = append(g.Writers, orchestrator.GuestWriter(a))
	}
	switch {
	case p.Cannot != "":
		g.Cannot = p.Cannot
	case len(p.Volumes) == 0:
		g.Cannot = "no logical volume of the guest is in use"
	case can == 0:
		g.Cannot = p.Volumes[0].Name + ": " + p.Volumes[0].Cannot
	}
	g.CanSnapshot = g.Cannot == ""
}
