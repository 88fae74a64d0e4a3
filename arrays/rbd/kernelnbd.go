package rbd

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/localdev"
	"github.com/cleave-san/cleave/lun"
)

const rbdNBD = "/usr/bin/rbd-nbd"

// serveKernelNBD has rbd-nbd serve an image as a block device of this host,
// /dev/nbd*. The device is gone when the program is: it stays in the foreground,
// and has the kernel's side open.
func (d *Driver) serveKernelNBD(ctx context.Context, s source) (lun.Device, func(), error) {
	args := []string{"-f", "map"}
	if s.readOnly {
		args = append(args, "--read-only")
	}
	for _, x := range []struct{ option, value string }{{"--conf=", d.o.Conf}, {"--id=", d.o.User}} {
		if x.value != "" {
			args = append(args, x.option+x.value)
		}
	}
	var path line
	c, err := start(nil, &path, rbdNBD, append(args, s.spec())...)
	if err != nil {
		return nil, nil, err
	}
	var x lun.Device
	err = c.until(ctx, func() error {
		dev, err := path.get()
		if err != nil {
			return err
		}
		if !strings.HasPrefix(dev, "/dev/nbd") {
			return driver.Errorf(driver.Unreachable, "it says %.80q, and not which device it is", dev)
		}
		if s.readOnly {
			x, err = localdev.Open(dev)
		} else {
			x, err = localdev.Rewrite(ctx, dev, localdev.Hooks{})
		}
		return err
	})
	if err != nil {
		c.end()
		return nil, nil, err
	}
	return x, c.end, nil
}

// line is the first line that a program writes.
type line struct {
	mu  sync.Mutex
	buf []byte
}

// Write implements io.Writer.
func (l *line) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.buf) < 4096 {
		l.buf = append(l.buf, p...)
	}
	return len(p), nil
}

// get is the line, or an error while there is none.
func (l *line) get() (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first, _, ok := bytes.Cut(l.buf, []byte("\n"))
	if !ok {
		return "", errors.New("it has not said which device it is")
	}
	return string(first), nil
}
