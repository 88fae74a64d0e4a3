package worker

import (
	"context"
	"errors"
	"io"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
)

// Container is what is known of a virtual disk's container.
type Container struct {
	Format  string `json:"format"`            // as in vdisk.Info
	Variant string `json:"variant,omitempty"` // in the format's own words
	Size    int64  `json:"size"`              // of the disk that the guest sees, in bytes
	// Dirty says that it was not closed: the guest was running. Its content is
	// right all the same.
	Dirty    bool     `json:"dirty,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
	// Problem says why its content can't be read, or not all of it.
	Problem *Error `json:"problem,omitempty"`
}

// Containers looks at the container of each of s.Places: that it is there and of
// its format, with all parents, and that its tables can be read from the first
// block to the last. Content is not read. What is wrong with one is in its
// Problem, and the others are looked at all the same.
func Containers(ctx context.Context, s Spec) ([]Container, error) {
	s.defaults()
	s.Detachable = false
	if err := s.check(); err != nil {
		return nil, err
	}
	if len(s.Places) == 0 {
		return nil, nil
	}
	p, err := launch(modeContainers, &s, config{}, ownID(), nil)
	if err != nil {
		return nil, err
	}
	defer p.end()
	rep, err := p.listen(ctx, s.Timeout)
	if err != nil {
		return nil, err
	}
	if len(rep.Containers) != len(s.Places) {
		return nil, errors.New("recovery worker's answer makes no sense: not one container for each place")
	}
	for i := range rep.Containers {
		c := &rep.Containers[i]
		c.Format, c.Variant = clean(c.Format), clean(c.Variant)
		for k := range c.Warnings {
			c.Warnings[k] = clean(c.Warnings[k])
		}
	}
	return rep.Containers, nil
}

// containers answers Containers.
func (c *config) containers(ctx context.Context, host *open.Host, stdout io.Writer) error {
	var out []Container
	for _, p := range c.Places {
		one, err := container(ctx, host, p)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			one.Problem = newError(err)
		}
		out = append(out, one)
	}
	return say(stdout, reply{Containers: out})
}

func container(ctx context.Context, host *open.Host, p open.Place) (c Container, err error) {
	c.Format = p.Format
	src, err := host.Disk(ctx, p)
	if err != nil {
		return c, err
	}
	contents, err := open.Probe(ctx, src)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, contents.Close()) }()
	d := contents.Disks[0]
	if err := d.Unreadable(); err != nil {
		return c, err
	}
	c.Variant, c.Size, c.Dirty = d.Info.Variant, d.Device.Size(), d.Info.Dirty
	for _, w := range d.Info.Warnings {
		c.Warnings = append(c.Warnings, clean(w.Error()))
	}
	if m, ok := d.Device.(lun.Mapper); ok {
		return c, m.Extents(0, c.Size, func(lun.Extent) error { return ctx.Err() })
	}
	return c, nil
}
