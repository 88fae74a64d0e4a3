package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/remote"
	"github.com/cleave-san/cleave/lun/open"
)

// FileSystem is the file system of a volume, which a worker has opened. It is
// read by way of it.
type FileSystem struct {
	Found
	// Volume is its name.
	Volume string
	*remote.Client

	p      *child
	socket *os.File
}

// OpenFiles opens the file system in a volume, by the volume's name or UUID, in
// a worker that serves it until Close. Errors are those of Open, and
// open.ErrNoFileSystem.
func OpenFiles(ctx context.Context, s Spec, volume string) (_ *FileSystem, err error) {
	p, socket, rep, err := launchServer(ctx, modeFiles, s, config{Volumes: []string{volume}})
	if err != nil {
		return nil, err
	}
	f := &FileSystem{p: p, socket: socket}
	defer func() {
		if err != nil {
			p.end()
			socket.Close()
		}
	}()
	if f.Found, err = rep.Contents.seen(); err != nil {
		return nil, err
	}
	if len(rep.Contents.Volumes) != 1 {
		return nil, errors.New("recovery worker's answer makes no sense: not one file system")
	}
	f.Volume = clean(rep.Contents.Volumes[0].Name)
	if f.Client, err = remote.New(f.dial); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *FileSystem) dial() (net.Conn, error) {
	conn, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d", f.socket.Fd()))
	if err != nil {
		select {
		case <-f.p.over:
			return nil, f.p.death()
		default:
		}
	}
	return conn, err
}

// Close ends the worker.
func (f *FileSystem) Close() error {
	err := f.Client.Close()
	f.p.end()
	return errors.Join(err, f.socket.Close())
}

// files serves the file system of a volume until ctx ends.
func (c *config) files(ctx context.Context, contents *open.Contents, stdout io.Writer) error {
	v, err := contents.Volume(c.Volumes[0])
	if err != nil {
		return err
	}
	d, err := v.Open()
	if err != nil {
		return err
	}
	f, err := open.FileSystem(d)
	if err != nil {
		return fmt.Errorf("%s: %w", v.Name, err)
	}
	file := os.NewFile(uintptr(c.ListenFD), "listener")
	l, err := net.FileListener(file)
	if err != nil {
		return err
	}
	file.Close()
	answer := describe(contents)
	answer.Volumes = []foundVolume{{Name: clean(v.Name)}}
	if err := say(stdout, reply{Contents: answer}); err != nil {
		return err
	}
	return serveFS(ctx, l, f)
}

// serveFS serves f to all who connect. A connection that ends, however it does,
// is the client's affair.
func serveFS(ctx context.Context, l net.Listener, f fs.FS) error {
	var conns sync.WaitGroup
	defer conns.Wait()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		conns.Go(func() {
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			defer conn.Close()
			_ = remote.Serve(conn, f)
		})
	}
}
