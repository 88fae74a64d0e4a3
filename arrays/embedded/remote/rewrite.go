package remote

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
)

// RewriteProtocol is what the connection is upgraded to where a snapshot is to
// be written: the Network Block Device protocol from its greeting on, with one
// export without a name. The snapshot is in use, by nobody else, until either
// side closes the connection.
const RewriteProtocol = "cleave-nbd"

// Rewrite implements driver.Rewriter. What is written goes through the data
// plane, which keeps track of it.
func (c *Client) Rewrite(ctx context.Context, s driver.SnapshotID) (lun.Device, error) {
	what := fmt.Sprintf("opening snapshot %s for writing", s)
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, c.lost(what, false, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	d, err := c.rewriter(ctx, conn, what, s)
	if !stop() && err == nil {
		d.Close()
		err = ctx.Err()
	}
	if ctx.Err() != nil && err != nil {
		err = c.lost(what, false, ctx.Err())
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return d, nil
}

func (c *Client) rewriter(ctx context.Context, conn *net.UnixConn, what string, s driver.SnapshotID) (*nbd.Client, error) {
	req, err := c.upgrade(conn, what, "/snapshots/"+esc(s)+"/rewrite", RewriteProtocol)
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(conn)
	//nolint:bodyclose // there is none: the connection goes on in another protocol
	resp, err := c.upgraded(r, req, what)
	if err != nil {
		return nil, err
	}
	size, _, err := described(resp)
	if err != nil {
		return nil, c.lost(what, false, err)
	}
	d, err := nbd.New(ctx, &greeted{UnixConn: conn, r: r}, nbd.ClientOptions{})
	if err == nil && d.Size() != size {
		err = fmt.Errorf("it has %d bytes and is served with %d", size, d.Size())
		d.Close()
	}
	if err != nil {
		return nil, c.lost(what, false, err)
	}
	return d, nil
}

// greeted is a connection of which some may have been read ahead. Its Close
// returns when the data plane has let the snapshot go.
type greeted struct {
	*net.UnixConn
	r    *bufio.Reader
	once sync.Once
}

func (g *greeted) Read(p []byte) (int, error) { return g.r.Read(p) }

func (g *greeted) Close() (err error) {
	g.once.Do(func() { err = letGo(g.UnixConn) })
	return err
}
