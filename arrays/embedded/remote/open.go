package remote

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
)

// Headers of the answer that hands over a descriptor.
const (
	HeaderIdentity = "Cleave-Identity"
	HeaderSize     = "Cleave-Size"
	// Protocol is what the connection is upgraded to: the answer carries the
	// descriptor (SCM_RIGHTS), and the snapshot is in use until either side
	// closes the connection.
	Protocol = "cleave-descriptor"
)

// closeWait bounds how long Close waits for the data plane to know.
const closeWait = 5 * time.Second

// device is a snapshot whose file this process has open by the data plane's
// leave.
type device struct {
	conn *net.UnixConn // the snapshot is in use while it is open
	f    *os.File
	size int64
	id   lun.Identity
	once sync.Once
}

var (
	_ lun.Filer      = (*device)(nil)
	_ lun.Identified = (*device)(nil)
	_ io.Closer      = (*device)(nil)
)

// Open implements driver.Opener. The device is read-only and a lun.Filer. The
// snapshot can't be deleted or resynced before it is closed, or this process
// ends; a descriptor that was handed on does not count.
func (c *Client) Open(ctx context.Context, s driver.SnapshotID) (lun.Device, error) {
	what := fmt.Sprintf("opening snapshot %s", s)
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, c.lost(what, false, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	d, err := c.handover(conn, what, s)
	if !stop() && err == nil {
		d.Close()
		err = c.lost(what, false, ctx.Err())
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return d, nil
}

func (c *Client) handover(conn *net.UnixConn, what string, s driver.SnapshotID) (*device, error) {
	req, err := c.upgrade(conn, what, "/snapshots/"+esc(s)+"/open", Protocol)
	if err != nil {
		return nil, err
	}
	// The descriptor comes with the first bytes of the answer.
	buf, oob := make([]byte, 16<<10), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return nil, c.lost(what, false, err)
	}
	fd := descriptor(oob[:oobn])
	//nolint:bodyclose // the body reads from conn, which is closed with the device or on the way out
	resp, err := c.upgraded(bufio.NewReader(io.MultiReader(bytes.NewReader(buf[:n]), conn)), req, what)
	if err == nil && fd < 0 {
		err = c.lost(what, false, errors.New("answer lacks the descriptor"))
	}
	d := &device{conn: conn}
	if err == nil {
		d.size, d.id, err = described(resp)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, err
	}
	d.f = os.NewFile(uintptr(fd), "snapshot "+string(s))
	return d, nil
}

// upgrade asks for a connection to become one of another protocol.
func (c *Client) upgrade(conn *net.UnixConn, what, path, protocol string) (*http.Request, error) {
	req, err := http.NewRequest(http.MethodPost, "http://dataplane/"+Version+path, nil)
	if err != nil {
		return nil, driver.Errorf(driver.InvalidRequest, "%s: %w", what, err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	if err := req.Write(conn); err != nil {
		return nil, c.lost(what, false, err)
	}
	return req, nil
}

// upgraded reads the answer to upgrade. What follows it in r is of the other
// protocol.
func (c *Client) upgraded(r *bufio.Reader, req *http.Request, what string) (*http.Response, error) {
	resp, err := http.ReadResponse(r, req)
	switch {
	case err != nil:
		return nil, c.lost(what, false, err)
	case resp.StatusCode/100 == 2:
		return nil, c.lost(what, false, errors.New("answer hands nothing over"))
	case resp.StatusCode != http.StatusSwitchingProtocols:
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // without it, the status has to do
		return nil, fault(what, resp.StatusCode, body)
	}
	return resp, nil
}

// described reads what an answer says of the snapshot that it hands over.
func described(resp *http.Response) (size int64, id lun.Identity, err error) {
	if size, err = strconv.ParseInt(resp.Header.Get(HeaderSize), 10, 64); err == nil {
		id, err = lun.ParseIdentity(resp.Header.Get(HeaderIdentity))
	}
	return size, id, err
}

// descriptor takes the one descriptor out of a control message, -1 if there is
// none.
func descriptor(oob []byte) int {
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1
	}
	fd := -1
	for _, m := range ms {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, n := range fds {
			if fd < 0 {
				unix.CloseOnExec(n)
				fd = n
			} else {
				unix.Close(n)
			}
		}
	}
	return fd
}

func (d *device) Size() int64                        { return d.size }
func (d *device) Sync() error                        { return nil }
func (d *device) WriteAt([]byte, int64) (int, error) { return 0, lun.ErrReadOnly }
func (d *device) Blocks() (logical, physical int)    { return 512, 4096 }
func (d *device) Identity() lun.Identity             { return d.id }

// File is the read-only descriptor, owned by the device.
func (d *device) File() *os.File { return d.f }

func (d *device) ReadAt(p []byte, off int64) (int, error) {
	if err := lun.CheckRange(off, int64(len(p)), d.size); err != nil {
		return 0, fmt.Errorf("%s: %d bytes at %d: %w", d.f.Name(), len(p), off, err)
	}
	n, err := d.f.ReadAt(p, off)
	switch {
	case errors.Is(err, os.ErrClosed):
		err = fmt.Errorf("%s: %w", d.f.Name(), lun.ErrClosed)
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("%s: file ends at %d: %w", d.f.Name(), off+int64(n), io.ErrUnexpectedEOF)
	}
	return n, err
}

// Close gives the snapshot back, and returns when the data plane knows: a
// Delete or Resync that follows finds it unused. Closing twice is nothing.
func (d *device) Close() error {
	var err error
	d.once.Do(func() { err = errors.Join(d.f.Close(), letGo(d.conn)) })
	return err
}

// letGo closes a connection that holds a snapshot. The other side closes when it
// has let go; one that is stuck finds out by the close.
func letGo(conn *net.UnixConn) error {
	if conn.CloseWrite() == nil && conn.SetReadDeadline(time.Now().Add(closeWait)) == nil {
		_, _ = io.Copy(io.Discard, conn)
	}
	return conn.Close()
}
