package worker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/extents"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

// wordDetach, on a line of its own, tells a worker to outlive its launcher.
const wordDetach = "detach"

// wordBegin has a worker that said its plan carry it out.
const wordBegin = "begin"

// Main is the worker's side: the program calls it with the arguments that
// follow "worker", and exits with what it returns. It is not for people: the
// descriptors that it uses are those that a launcher gave it.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	err := errors.New("this is not for people: it is started by other commands")
	if len(args) > 0 {
		m := mode(args[0])
		if len(args) > 1 && args[1] == "confine" {
			err = confine(args[2:])
		} else if m == modeView || m == modeInspect || m == modeCheck || m == modeVolumes || m == modeFiles || m == modeContainers || m == modeInPlace || m == modeConfined {
			err = serve(m, stdin, stdout)
		}
	}
	if err != nil {
		fmt.Fprintf(stderr, "cleave worker: %v\n", clean(err.Error()))
		return 1
	}
	return 0
}

// serve does the work of a confined worker.
func serve(m mode, stdin io.Reader, stdout io.Writer) error {
	confined, err := filter()
	if err != nil {
		return err
	}
	in := bufio.NewReader(stdin)
	line, err := io.ReadAll(io.LimitReader(lineReader{in}, maxConfig))
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	var c config
	if err := json.Unmarshal(line, &c); err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	// Collect harder before the hard limit ends us.
	debug.SetMemoryLimit(c.Memory / 4 * 3)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	begin := make(chan struct{})
	go lifeline(in, c.Detachable, begin, cancel)

	if m == modeConfined {
		confined.try()
		return say(stdout, reply{Confinement: &confined})
	}
	err = work(ctx, m, c, begin, stdout)
	if err != nil && ctx.Err() == nil {
		return say(stdout, reply{Error: newError(err)})
	}
	return nil
}

// lineReader reads up to a line's end, a byte at a time from a buffer: what
// comes after is for somebody else.
type lineReader struct{ r *bufio.Reader }

func (l lineReader) Read(p []byte) (int, error) {
	b, err := l.r.ReadByte()
	if err != nil || b == '\n' {
		return 0, io.EOF
	}
	p[0] = b
	return 1, nil
}

// lifeline ends the process when the launcher does, unless it was let go.
// It closes begin at the word for it.
func lifeline(in *bufio.Reader, detachable bool, begin chan struct{}, cancel context.CancelFunc) {
	begun := false
	for {
		word, err := in.ReadString('\n')
		if err != nil {
			cancel()
			return
		}
		switch word = strings.TrimSpace(word); {
		case detachable && word == wordDetach:
			return
		case word == wordBegin && !begun:
			begun = true
			close(begin)
		}
	}
}

func say(w io.Writer, r reply) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

func work(ctx context.Context, m mode, c config, begin <-chan struct{}, stdout io.Writer) error {
	sources, err := c.open(ctx)
	if err != nil {
		return err
	}
	if len(c.Places) > 0 {
		host := open.NewHost(sources...)
		defer host.Close()
		if m == modeContainers {
			return c.containers(ctx, host, stdout)
		}
		if sources, err = host.Disks(ctx, c.Places); err != nil {
			return err
		}
	}
	contents, err := open.Probe(ctx, sources...)
	if err != nil {
		return err
	}
	defer contents.Close()
	for _, d := range contents.Disks { // else its container would be served for it
		if err := d.Unreadable(); err != nil && len(c.Places) > 0 {
			return fmt.Errorf("%s: %w", d.Name, err)
		}
	}
	switch m {
	case modeInspect:
		r, err := recovery.Inspect(ctx, contents)
		if err != nil {
			return err
		}
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		return say(stdout, reply{Report: b, Contents: describe(contents)})
	case modeCheck:
		v, err := recovery.Verify(ctx, contents, c.Expected)
		if err != nil {
			return err
		}
		return say(stdout, reply{Verdicts: v})
	case modeVolumes:
		return c.volumes(ctx, contents, stdout)
	case modeFiles:
		return c.files(ctx, contents, stdout)
	case modeInPlace:
		return c.inPlace(ctx, contents, begin, stdout)
	case modeView:
		return c.view(ctx, contents, stdout)
	}
	return fmt.Errorf("mode %q is not known", m)
}

// DirtyPrefix and an Export's name is the name of one more export, read-only: the
// disk as the split has it.
const DirtyPrefix = "dirty-"

// view serves a recovered view until ctx ends.
func (c *config) view(ctx context.Context, contents *open.Contents, stdout io.Writer) error {
	o := recovery.ViewOptions{AsItIs: c.NoRecovery, Snapshots: c.Snapshots, Limit: c.Limit, ReadOnly: c.ReadOnly, NewIdentity: c.Identity}
	for _, fd := range c.OverlayFDs {
		o.Files = append(o.Files, os.NewFile(uintptr(fd), "overlay"))
	}
	v, err := recovery.OpenView(ctx, contents, o)
	if err != nil {
		return err
	}
	defer v.Close()
	devices := v.Devices
	if c.ReadOnly {
		devices = v.Clean
	}
	ready := Ready{Volumes: v.Volumes, Identity: v.Identity, Warnings: describe(contents).Warnings}
	for _, err := range v.Warnings {
		ready.Warnings = append(ready.Warnings, newError(err))
	}
	var exports []nbd.Export
	for i, d := range devices {
		e := Export{Name: strconv.Itoa(i), Size: d.Size(), Logical: 512, Physical: 4096}
		if b, ok := d.(lun.Blocker); ok {
			e.Logical, e.Physical = b.Blocks()
		}
		ready.Exports = append(ready.Exports, e)
		exports = append(exports, nbd.Export{Name: e.Name, Device: d, ReadOnly: c.ReadOnly},
			nbd.Export{Name: rewrittenPrefix + e.Name, Device: &rewrittenMap{view: v, device: i}, ReadOnly: true},
			nbd.Export{Name: DirtyPrefix + e.Name, Device: contents.Disks[i].Device, ReadOnly: true})
	}
	return c.serve(ctx, exports, func() error { return say(stdout, reply{View: &ready}) })
}

// serve serves exports on the listener that it was given, and says so.
func (c *config) serve(ctx context.Context, exports []nbd.Export, ready func() error) error {
	server, err := nbd.NewServer(nbd.ServerOptions{}, exports...)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(c.ListenFD), "listener")
	l, err := net.FileListener(f)
	if err != nil {
		return err
	}
	f.Close()
	if err := ready(); err != nil {
		return err
	}
	return server.Serve(ctx, l)
}

// volumes serves volumes as they are, a snapshot with its own content, until
// ctx ends.
func (c *config) volumes(ctx context.Context, contents *open.Contents, stdout io.Writer) error {
	volumes := contents.Volumes()
	if c.Volumes[0] != AllVolumes {
		volumes = nil
		for _, name := range c.Volumes {
			v, err := contents.Volume(name)
			if err != nil {
				return err
			}
			volumes = append(volumes, v)
		}
	}
	answer := describe(contents)
	var exports []nbd.Export
	for i, v := range volumes {
		d, err := v.Open()
		if err != nil {
			answer.Volumes = append(answer.Volumes, foundVolume{Name: clean(v.Name), Error: newError(err)})
			continue
		}
		answer.Volumes = append(answer.Volumes, foundVolume{Name: clean(v.Name)})
		exports = append(exports, nbd.Export{Name: strconv.Itoa(i), Device: d, ReadOnly: true})
	}
	return c.serve(ctx, exports, func() error { return say(stdout, reply{Contents: answer}) })
}

// describe names what is there, and what is wrong with it.
func describe(contents *open.Contents) *found {
	f := new(found)
	for _, v := range contents.Volumes() {
		f.Names = append(f.Names, clean(v.Name))
	}
	for _, err := range contents.Damage {
		f.Damage = append(f.Damage, newError(err))
	}
	for _, err := range contents.Warnings {
		f.Warnings = append(f.Warnings, newError(err))
	}
	return f
}

// open makes devices of the descriptors.
func (c *config) open(ctx context.Context) ([]open.Source, error) {
	var conn *net.UnixConn
	if c.FilesFD != 0 {
		var err error
		if conn, err = unixConn(os.NewFile(uintptr(c.FilesFD), "files")); err != nil {
			return nil, err
		}
	}
	var mu sync.Mutex
	var sources []open.Source
	for i, s := range c.Sources {
		d, err := s.device(ctx, os.NewFile(uintptr(s.FD), s.Name))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
		src := open.Source{Name: s.Name, Device: d, Containers: c.Containers, Snapshot: c.Snapshot, Writable: s.Writable}
		if conn != nil {
			src.Files = &resolver{ctx: ctx, source: i, mu: &mu, conn: conn}
		}
		sources = append(sources, src)
	}
	return sources, nil
}

// device makes a device of a descriptor that it takes over.
func (s *configSource) device(ctx context.Context, f *os.File) (lun.Device, error) {
	if s.NBD {
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			return nil, err
		}
		return nbd.New(ctx, conn, nbd.ClientOptions{})
	}
	size, err := f.Seek(0, io.SeekEnd) // a block device's size as well
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &file{f: f, size: size, logical: s.Logical, physical: s.Physical, writable: s.Writable}, nil
}

// file is an inherited descriptor as a device.
type file struct {
	f                 *os.File
	size              int64
	logical, physical int
	writable          bool
	holes             extents.FileMap
}

func (d *file) Size() int64  { return d.size }
func (d *file) Close() error { return d.f.Close() }

func (d *file) Sync() error {
	if !d.writable {
		return nil
	}
	return d.f.Sync()
}

func (d *file) WriteAt(p []byte, off int64) (int, error) {
	if !d.writable {
		return 0, lun.ErrReadOnly
	}
	if err := lun.CheckRange(off, int64(len(p)), d.size); err != nil {
		return 0, err
	}
	n, err := d.f.WriteAt(p, off)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = fmt.Errorf("%w: %w", lun.ErrNoSpace, err)
	}
	return n, err
}

func (d *file) Extents(off, n int64, fn func(lun.Extent) error) error {
	if err := lun.CheckRange(off, n, d.size); err != nil {
		return err
	}
	return d.holes.Extents(d.f, off, n, fn)
}

func (d *file) Blocks() (logical, physical int) {
	return max(512, d.logical), max(512, d.logical, d.physical)
}

func (d *file) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.size); err != nil {
		return 0, err
	}
	n, err := d.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // it shrank under us
	}
	return n, err
}
