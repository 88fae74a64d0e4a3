package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun/nbd"
)

// AllVolumes in the place of a volume's name stands for each of them.
const AllVolumes = "*"

// Found is what a worker saw on the devices at large.
type Found struct {
	// Names of all volumes that are there, readable or not.
	Names []string
	// Damage is what hides a part of the devices. *lun.FormatErrors are found
	// in it by errors.As.
	Damage []error
	// Warnings are about what is read all the same.
	Warnings []error
}

// Contents are volumes on devices that a worker has opened. They are read by
// way of it.
type Contents struct {
	Found
	// Volumes that were asked for, in that order.
	Volumes []Volume

	p      *child
	socket *os.File // where the worker listens; a name it has no more
}

// Volume is one of them.
type Volume struct {
	Name string
	// Err says why it can't be read.
	Err error

	of     *Contents
	export string
}

// Open opens volumes, by name or UUID, in a worker that serves them until
// Close. A name that is not there is an error of Open, open.ErrNotFound; a
// volume that can't be read is one of the Volume.
func Open(ctx context.Context, s Spec, volumes ...string) (_ *Contents, err error) {
	if len(volumes) == 0 {
		return nil, errors.New("recovery worker: no volumes named")
	}
	p, socket, rep, err := launchServer(ctx, modeVolumes, s, config{Volumes: volumes})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			socket.Close()
		}
	}()
	c := &Contents{p: p, socket: socket}
	if err := c.take(rep.Contents); err != nil {
		p.end()
		return nil, err
	}
	if volumes[0] != AllVolumes && len(c.Volumes) != len(volumes) {
		p.end()
		return nil, fmt.Errorf("recovery worker opened %d volumes, asked for were %d", len(c.Volumes), len(volumes))
	}
	return c, nil
}

// launchServer starts a worker that serves on a socket without a name, until
// the process is ended, and returns the socket and the worker's first answer.
func launchServer(ctx context.Context, m mode, s Spec, c config) (p *child, socket *os.File, rep *reply, err error) {
	s.defaults()
	s.Detachable = false
	if err := s.check(); err != nil {
		return nil, nil, nil, err
	}
	dir, err := os.MkdirTemp("", "cleave-")
	if err != nil {
		return nil, nil, nil, fmt.Errorf("socket of the recovery worker: %w", err)
	}
	// Once it is open, the socket needs no name: a kill leaves no file.
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "volumes")
	lf, err := newSocket(path)
	if err != nil {
		return nil, nil, nil, err
	}
	socket, err = os.OpenFile(path, unix.O_PATH, 0)
	if err != nil {
		lf.Close()
		return nil, nil, nil, fmt.Errorf("socket of the recovery worker: %w", err)
	}
	defer func() {
		if err != nil {
			socket.Close()
		}
	}()
	c.ListenFD = 3
	p, err = launch(m, &s, c, ownID(), []*os.File{lf})
	if err != nil {
		return nil, nil, nil, err
	}
	rep, err = p.listen(ctx, s.Timeout)
	return p, socket, rep, err
}

// take reads a worker's answer.
func (c *Contents) take(f *found) error {
	seen, err := f.seen()
	if err != nil {
		return err
	}
	c.Found = seen
	for i, v := range f.Volumes {
		out := Volume{Name: v.Name, of: c, export: strconv.Itoa(i)}
		if v.Error != nil {
			out.Err = v.Error
		}
		c.Volumes = append(c.Volumes, out)
	}
	return nil
}

func (f *found) seen() (Found, error) {
	if f == nil {
		return Found{}, errors.New("recovery worker's answer makes no sense: it names no volumes")
	}
	out := Found{Names: f.Names}
	for _, e := range f.Damage {
		out.Damage = append(out.Damage, e)
	}
	for _, e := range f.Warnings {
		out.Warnings = append(out.Warnings, e)
	}
	return out, nil
}

// Open connects to a volume's content. The caller closes the device.
func (v *Volume) Open(ctx context.Context) (*nbd.Client, error) {
	if v.Err != nil {
		return nil, v.Err
	}
	addr := fmt.Sprintf("/proc/self/fd/%d", v.of.socket.Fd())
	d, err := nbd.Dial(ctx, "unix", addr, nbd.ClientOptions{Export: v.export})
	if err != nil {
		select {
		case <-v.of.p.over:
			return nil, v.of.p.death()
		default:
		}
		return nil, fmt.Errorf("%s: %w", v.Name, err)
	}
	return d, nil
}

// Close ends the worker.
func (c *Contents) Close() error {
	c.p.end()
	return c.socket.Close()
}
