package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
)

// postgres is a connection that speaks just enough of PostgreSQL's protocol 3.0
// (PostgreSQL 15 documentation, chapter 55) for a load: trust authentication
// and the simple query. It keeps the program static and free of libraries.
type postgres struct {
	conn net.Conn
	r    *bufio.Reader
}

const (
	protocol3  = 3 << 16
	maxMessage = 1 << 20 // bytes of one message from the server
)

// dialPostgres connects by a unix socket; ctx bounds the connecting only.
func dialPostgres(ctx context.Context, socket, user, database string) (*postgres, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	p := &postgres{conn: conn, r: bufio.NewReader(conn)}
	body := binary.BigEndian.AppendUint32(nil, protocol3)
	for _, s := range []string{"user", user, "database", database, ""} {
		body = append(append(body, s...), 0)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)+4))
	if _, err := conn.Write(append(head, body...)); err != nil {
		conn.Close()
		return nil, err
	}
	if _, err := p.untilReady(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("connecting to PostgreSQL at %s: %w", socket, err)
	}
	return p, nil
}

// close says good-bye (Terminate) and closes the connection.
func (p *postgres) close() {
	_, _ = p.conn.Write([]byte{'X', 0, 0, 0, 4})
	p.conn.Close()
}

// query runs one statement as a transaction of its own and returns its rows.
func (p *postgres) query(statement string) ([][]string, error) {
	m := binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(len(statement)+5))
	m = append(append(m, statement...), 0)
	if _, err := p.conn.Write(m); err != nil {
		return nil, err
	}
	return p.untilReady()
}

// untilReady reads messages until the server is ready for the next query.
func (p *postgres) untilReady() (rows [][]string, failed error) {
	for {
		kind, body, err := p.message()
		if err != nil {
			return nil, errors.Join(failed, err)
		}
		switch kind {
		case 'E':
			failed = errors.New(errorText(body))
		case 'R':
			if len(body) < 4 || binary.BigEndian.Uint32(body) != 0 {
				return nil, errors.New("the server asks for a password; only trust is spoken here")
			}
		case 'D':
			row, err := dataRow(body)
			if err != nil {
				return nil, err
			}
			rows = append(rows, row)
		case 'Z':
			return rows, failed
		}
	}
}

func (p *postgres) message() (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(p.r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n < 4 || n > maxMessage {
		return 0, nil, fmt.Errorf("message %q of %d bytes", head[0], n)
	}
	body = make([]byte, n-4)
	_, err = io.ReadFull(p.r, body)
	return head[0], body, err
}

// errorText takes severity and message out of an ErrorResponse.
func errorText(body []byte) string {
	var severity, text string
	for field := range strings.SplitSeq(string(body), "\x00") {
		switch {
		case strings.HasPrefix(field, "S"):
			severity = field[1:]
		case strings.HasPrefix(field, "M"):
			text = field[1:]
		}
	}
	return severity + ": " + text
}

func dataRow(b []byte) ([]string, error) {
	if len(b) < 2 {
		return nil, errors.New("short row")
	}
	n := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	var row []string
	for range n {
		if len(b) < 4 {
			return nil, errors.New("short row")
		}
		size := int32(binary.BigEndian.Uint32(b))
		b = b[4:]
		if size < 0 { // NULL
			row = append(row, "")
			continue
		}
		if int(size) > len(b) {
			return nil, errors.New("short row")
		}
		row = append(row, string(b[:size]))
		b = b[size:]
	}
	return row, nil
}
