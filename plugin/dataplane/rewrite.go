package dataplane

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/nbd"
)

// rewrite lets another process of this host write to a snapshot, alone, until
// the connection ends, whoever ends it. What is written passes through here, so
// that the array marks it.
func (p *plane) rewrite(w http.ResponseWriter, r *http.Request) {
	p.handed.Add(1)
	defer p.handed.Done()
	id := driver.SnapshotID(r.PathValue("id"))
	if r.Header.Get("Upgrade") != remote.RewriteProtocol {
		p.reply(w, nil, driver.Errorf(driver.InvalidRequest, "a snapshot is opened for writing by upgrading to %s", remote.RewriteProtocol))
		return
	}
	o, err := option[driver.Rewriter](p, "write to a snapshot")
	if err != nil {
		p.reply(w, nil, err)
		return
	}
	d, err := o.Rewrite(r.Context(), id)
	if err != nil {
		p.reply(w, nil, err)
		return
	}
	letGo := func() {
		if c, ok := d.(io.Closer); ok {
			if err := c.Close(); err != nil {
				p.log.Warn("closing a snapshot that was rewritten", "snapshot", id, "error", err)
			}
		}
	}
	server, err := nbd.NewServer(nbd.ServerOptions{Log: p.log}, nbd.Export{Device: d})
	if err != nil {
		letGo()
		p.reply(w, nil, err)
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		letGo()
		p.reply(w, nil, err)
		return
	}
	defer conn.Close()
	defer letGo() // before conn: the other side waits for that
	defer context.AfterFunc(p.ctx, func() { conn.Close() })()
	identity := lun.Identity{}
	if i, ok := d.(lun.Identified); ok {
		identity = i.Identity()
	}
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %s\r\n%s: %d\r\n\r\n",
		remote.RewriteProtocol, remote.HeaderIdentity, identity, remote.HeaderSize, d.Size()); err != nil {
		p.log.Warn("handing a snapshot over for writing", "snapshot", id, "error", err)
		return
	}
	p.log.Info("a snapshot is being rewritten", "snapshot", id)
	if err := server.ServeConn(p.ctx, lasting{conn}); err != nil {
		p.log.Warn("a snapshot that was being rewritten", "snapshot", id, "error", err)
	}
}

// lasting is a connection whose Close ends all that goes on over it, but not the
// connection.
type lasting struct{ net.Conn }

func (l lasting) Close() error { return l.SetDeadline(time.Unix(1, 0)) }
