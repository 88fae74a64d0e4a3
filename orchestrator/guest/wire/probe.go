package wire

import "fmt"

// Probe is what a guest could snapshot and who would take part, found without
// changing anything in it.
type Probe struct {
	Cannot  string   // why the guest can't make snapshots at all
	Volumes []Volume // logical volumes in use, and what else is mounted read-write
	Apps    []App    // applications that run
}

// Volume is a volume that a guest step would snapshot, or one that it can't: a
// file system that is mounted read-write and lies on no logical volume is listed
// too, for to keep silent about it would promise too much.
type Volume struct {
	Name   string `json:"name"` // "vg/lv"; "sda1" where it is none
	UUID   string `json:"uuid"` // "" where it is no logical volume
	Kind   string `json:"kind"` // as in Completion; "partition", "disk"
	Mount  string `json:"mount,omitempty"`
	FS     string `json:"fs,omitempty"`
	Size   int64  `json:"size"`             // bytes
	Free   int64  `json:"free"`             // bytes that its group has left
	Cannot string `json:"cannot,omitempty"` // why it can't be snapshot
}

// App is an application that would be asked.
type App struct {
	App     string   `json:"app"`
	Version string   `json:"version,omitempty"`
	Running bool     `json:"running"`
	Volumes []string `json:"volumes,omitempty"` // the "vg/lv" that hold its data
	Cannot  string   `json:"cannot,omitempty"`  // why it can't take part
}

type probeLine struct {
	Cannot string `json:"cannot,omitempty"`
}

// ParseProbe reads the lines of a probe, which must be whole: one without its
// end line is an error.
func ParseProbe(b []byte) (Probe, error) {
	var p Probe
	if len(b) > MaxReport {
		return p, fmt.Errorf("guest probe: %d bytes, more than %d", len(b), MaxReport)
	}
	ended := false
	for n, line := range wholeLines(b) {
		var m message
		if err := m.parse(line); err != nil {
			return p, fmt.Errorf("guest probe, line %d: %w", n+1, err)
		}
		switch {
		case m.Probe != nil:
			p.Cannot = clean(m.Probe.Cannot)
		case m.Volume != nil:
			v := *m.Volume
			v.Cannot = clean(v.Cannot)
			if v.Size < 0 || v.Free < 0 {
				return p, fmt.Errorf("guest probe, line %d: a volume of %d bytes, %d free", n+1, v.Size, v.Free)
			}
			p.Volumes = append(p.Volumes, v)
		case m.App != nil:
			a := *m.App
			a.App, a.Cannot = clean(a.App), clean(a.Cannot)
			p.Apps = append(p.Apps, a)
		case m.End != nil:
			ended = true
		}
	}
	if !ended {
		return p, fmt.Errorf("guest probe: it has no end")
	}
	return p, nil
}
