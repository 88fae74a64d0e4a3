package nbd

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

// handshake is the server's side of negotiation, section "Newstyle
// negotiation" and "Fixed newstyle negotiation".
type handshake struct {
	s          *Server
	conn       net.Conn // TLS once that was agreed
	secure     bool     // it is
	noZeroes   bool
	structured bool
	allocation string // export for which base:allocation was set …
	hasAlloc   bool   // … if it was
}

// run returns the export that the client chose, or nil if it left in good
// order.
func (h *handshake) run() (*Export, error) {
	var hello [18]byte
	binary.BigEndian.PutUint64(hello[0:], magicNBD)
	binary.BigEndian.PutUint64(hello[8:], magicOption)
	binary.BigEndian.PutUint16(hello[16:], flagFixedNewstyle|flagNoZeroes)
	if _, err := h.conn.Write(hello[:]); errors.Is(err, syscall.EPIPE) {
		return nil, nil // it only looked whether somebody answers
	} else if err != nil {
		return nil, fmt.Errorf("NBD handshake: %w", err)
	}
	var cf [4]byte
	if _, err := io.ReadFull(h.conn, cf[:]); err != nil {
		return nil, fmt.Errorf("NBD handshake: %w", err)
	}
	flags := binary.BigEndian.Uint32(cf[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return nil, fmt.Errorf("NBD handshake: client flags %#x have unknown bits", flags)
	}
	h.noZeroes = flags&flagNoZeroes != 0

	for range maxOptions {
		opt, data, err := h.readOption()
		if err != nil {
			return nil, err
		}
		if h.s.o.TLS != nil && !h.s.o.TLSOptional && !h.secure && opt != optStartTLS && opt != optAbort {
			if opt == optExportName { // to which there is no other no
				return nil, errors.New("NBD handshake: client chose an export without TLS, which is required")
			}
			if err := h.reply(opt, repErrTLSReqd, []byte("this server speaks TLS only")); err != nil {
				return nil, err
			}
			continue
		}
		switch opt {
		case optExportName:
			return h.exportName(string(data))
		case optStartTLS:
			err = h.startTLS(data)
		case optGo, optInfo:
			e, err := h.info(opt, data)
			if err != nil || e != nil && opt == optGo {
				return e, err
			}
		case optAbort:
			// The client may hang up without waiting for the answer.
			_ = h.reply(opt, repAck, nil)
			return nil, nil
		case optList:
			err = h.list(data)
		case optStructuredReply:
			if len(data) != 0 {
				err = h.reply(opt, repErrInvalid, []byte("no data allowed here"))
				break
			}
			h.structured = true
			err = h.reply(opt, repAck, nil)
		case optSetMeta, optListMeta:
			err = h.meta(opt, data)
		default:
			err = h.reply(opt, repErrUnsup, nil)
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("NBD handshake: client sent %d options and chose no export", maxOptions)
}

// startTLS answers NBD_OPT_STARTTLS. What was agreed before is forgotten: anybody
// on the way may have said it. Nothing is read ahead, so that what came in the
// same packet is the TLS handshake's, and fails it.
func (h *handshake) startTLS(data []byte) error {
	switch {
	case len(data) != 0:
		return h.reply(optStartTLS, repErrInvalid, []byte("no data allowed here"))
	case h.secure:
		return h.reply(optStartTLS, repErrInvalid, []byte("this is TLS already"))
	case h.s.o.TLS == nil:
		return h.reply(optStartTLS, repErrPolicy, []byte("this server has no certificate"))
	}
	if err := h.reply(optStartTLS, repAck, nil); err != nil {
		return err
	}
	conn := tls.Server(h.conn, h.s.o.TLS)
	if err := conn.Handshake(); err != nil { // within the connection's deadline
		return fmt.Errorf("NBD handshake: TLS: %w", err)
	}
	h.conn, h.secure = conn, true
	h.structured, h.hasAlloc = false, false
	return nil
}

func (h *handshake) readOption() (optionType, []byte, error) {
	var head [16]byte
	if _, err := io.ReadFull(h.conn, head[:]); err != nil {
		return 0, nil, fmt.Errorf("NBD handshake: %w", err)
	}
	if m := binary.BigEndian.Uint64(head[0:]); m != magicOption {
		return 0, nil, fmt.Errorf("NBD handshake: option magic is %#x", m)
	}
	opt := optionType(binary.BigEndian.Uint32(head[8:]))
	n := binary.BigEndian.Uint32(head[12:])
	if n > maxOption {
		return 0, nil, fmt.Errorf("NBD handshake: %v claims %d bytes, at most %d", opt, n, maxOption)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(h.conn, data); err != nil {
		return 0, nil, fmt.Errorf("NBD handshake: %v: %w", opt, err)
	}
	return opt, data, nil
}

func (h *handshake) reply(opt optionType, t replyType, data []byte) error {
	b := make([]byte, 20, 20+len(data))
	binary.BigEndian.PutUint64(b[0:], magicOptReply)
	binary.BigEndian.PutUint32(b[8:], uint32(opt))
	binary.BigEndian.PutUint32(b[12:], uint32(t))
	binary.BigEndian.PutUint32(b[16:], uint32(len(data)))
	if _, err := h.conn.Write(append(b, data...)); err != nil {
		return fmt.Errorf("NBD handshake: answering %v: %w", opt, err)
	}
	return nil
}

// exportName answers NBD_OPT_EXPORT_NAME, which has no way to say no but to
// hang up.
func (h *handshake) exportName(name string) (*Export, error) {
	e := h.s.exports[name]
	if e == nil {
		return nil, fmt.Errorf("NBD handshake: no export %.80q", name)
	}
	b := make([]byte, 10, 134)
	binary.BigEndian.PutUint64(b[0:], uint64(e.Device.Size()))
	binary.BigEndian.PutUint16(b[8:], e.flags(h.structured))
	if !h.noZeroes {
		b = b[:134]
	}
	if _, err := h.conn.Write(b); err != nil {
		return nil, fmt.Errorf("NBD handshake: %w", err)
	}
	return h.chosen(e), nil
}

// chosen drops what was negotiated for another export.
func (h *handshake) chosen(e *Export) *Export {
	h.hasAlloc = h.hasAlloc && h.structured && h.allocation == e.Name
	return e
}

// info answers NBD_OPT_INFO and NBD_OPT_GO. A nil export without an error means
// that the client was told no.
func (h *handshake) info(opt optionType, data []byte) (*Export, error) {
	name, rest, ok := takeString(data)
	if !ok || len(rest) < 2 || len(rest) != 2+2*int(binary.BigEndian.Uint16(rest)) {
		return nil, h.reply(opt, repErrInvalid, []byte("lengths do not add up"))
	}
	e := h.s.exports[name]
	if e == nil {
		return nil, h.reply(opt, repErrUnknown, nil)
	}
	b := make([]byte, 12)
	binary.BigEndian.PutUint16(b[0:], infoExport)
	binary.BigEndian.PutUint64(b[2:], uint64(e.Device.Size()))
	binary.BigEndian.PutUint16(b[10:], e.flags(h.structured))
	if err := h.reply(opt, repInfo, b); err != nil {
		return nil, err
	}
	b = make([]byte, 14)
	minimum, preferred, maximum := e.blocks()
	binary.BigEndian.PutUint16(b[0:], infoBlockSize)
	binary.BigEndian.PutUint32(b[2:], minimum)
	binary.BigEndian.PutUint32(b[6:], preferred)
	binary.BigEndian.PutUint32(b[10:], maximum)
	if err := h.reply(opt, repInfo, b); err != nil {
		return nil, err
	}
	seen := map[uint16]bool{}
	for rest = rest[2:]; len(rest) > 0; rest = rest[2:] {
		kind := binary.BigEndian.Uint16(rest)
		text := map[uint16]string{infoName: e.Name, infoDescription: e.Description}[kind]
		if seen[kind] || text == "" {
			continue // unknown kinds are ignored, as the specification asks
		}
		seen[kind] = true
		if err := h.reply(opt, repInfo, append(binary.BigEndian.AppendUint16(nil, kind), text...)); err != nil {
			return nil, err
		}
	}
	if err := h.reply(opt, repAck, nil); err != nil {
		return nil, err
	}
	return h.chosen(e), nil
}

func (h *handshake) list(data []byte) error {
	if len(data) != 0 {
		return h.reply(optList, repErrInvalid, []byte("no data allowed here"))
	}
	for _, name := range h.s.order {
		b := appendString(nil, name)
		if err := h.reply(optList, repServer, append(b, h.s.exports[name].Description...)); err != nil {
			return err
		}
	}
	return h.reply(optList, repAck, nil)
}

// meta answers NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT, section
// "Metadata querying": base:allocation is the one context we have.
func (h *handshake) meta(opt optionType, data []byte) error {
	if opt == optSetMeta {
		h.hasAlloc = false // each new call replaces the last
	}
	if !h.structured {
		return h.reply(opt, repErrInvalid, []byte("structured replies come first"))
	}
	name, rest, ok := takeString(data)
	if !ok || len(rest) < 4 {
		return h.reply(opt, repErrInvalid, []byte("lengths do not add up"))
	}
	if h.s.exports[name] == nil {
		return h.reply(opt, repErrUnknown, nil)
	}
	n := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	match := n == 0 && opt == optListMeta
	for range n {
		var q string
		if q, rest, ok = takeString(rest); !ok {
			return h.reply(opt, repErrInvalid, []byte("lengths do not add up"))
		}
		match = match || q == contextAllocation || q == "base:" && opt == optListMeta
	}
	if len(rest) != 0 {
		return h.reply(opt, repErrInvalid, []byte("lengths do not add up"))
	}
	if match {
		id := uint32(0) // reserved in a listing
		if opt == optSetMeta {
			id = contextAllocationID
			h.allocation, h.hasAlloc = name, true
		}
		b := append(binary.BigEndian.AppendUint32(nil, id), contextAllocation...)
		if err := h.reply(opt, repMetaContext, b); err != nil {
			return err
		}
	}
	return h.reply(opt, repAck, nil)
}

// takeString cuts a string with its 32-bit length off the front of b.
func takeString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; n > maxName || int(n) > len(b) {
		return "", nil, false
	}
	return string(b[:n]), b[n:], true
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}
