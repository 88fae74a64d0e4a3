package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
)

// negotiation is the client's side of the handshake, and what came of it.
type negotiation struct {
	conn net.Conn

	size       int64
	flags      uint16
	structured bool
	allocation bool
	contextID  uint32
	minimum    uint32
	preferred  uint32
	maximum    uint32
}

// run chooses the export. It prefers NBD_OPT_GO and falls back to
// NBD_OPT_EXPORT_NAME where the server does not know it.
func (n *negotiation) run(export string) error {
	n.minimum, n.preferred, n.maximum = 1, 4096, MaxPayload
	if len(export) > maxName {
		return fmt.Errorf("export name of %d bytes, at most %d", len(export), maxName)
	}
	var hello [18]byte
	if _, err := io.ReadFull(n.conn, hello[:]); err != nil {
		return fmt.Errorf("reading its greeting: %w", err)
	}
	if m := binary.BigEndian.Uint64(hello[0:]); m != magicNBD {
		return fmt.Errorf("greeting is %#x: not an NBD server", m)
	}
	if m := binary.BigEndian.Uint64(hello[8:]); m != magicOption {
		return fmt.Errorf("greeting is of the oldstyle negotiation, which is not spoken here")
	}
	theirs := uint32(binary.BigEndian.Uint16(hello[16:]))
	ours := theirs & (flagFixedNewstyle | flagNoZeroes)
	if _, err := n.conn.Write(binary.BigEndian.AppendUint32(nil, ours)); err != nil {
		return err
	}
	if theirs&flagFixedNewstyle == 0 {
		return n.exportName(export, ours&flagNoZeroes != 0)
	}
	if err := n.structuredReplies(export); err != nil {
		return err
	}
	ok, err := n.goExport(export)
	if err == nil && !ok {
		n.allocation = false
		err = n.exportName(export, ours&flagNoZeroes != 0)
	}
	return err
}

// structuredReplies asks for structured replies and base:allocation; both may
// be refused.
func (n *negotiation) structuredReplies(export string) error {
	err := n.option(optStructuredReply, nil, nil)
	var no *refusal
	if errors.As(err, &no) {
		return nil
	}
	if err != nil {
		return err
	}
	n.structured = true
	data := appendString(nil, export)
	data = binary.BigEndian.AppendUint32(data, 1)
	data = appendString(data, contextAllocation)
	err = n.option(optSetMeta, data, func(t replyType, b []byte) error {
		if t != repMetaContext || len(b) < 4 {
			return fmt.Errorf("%v with %d bytes in answer to %v", t, len(b), optSetMeta)
		}
		if string(b[4:]) == contextAllocation {
			n.allocation, n.contextID = true, binary.BigEndian.Uint32(b)
		}
		return nil
	})
	if errors.As(err, &no) {
		n.allocation = false
		return nil
	}
	return err
}

// goExport asks by NBD_OPT_GO; false without an error means that the server
// does not know it.
func (n *negotiation) goExport(export string) (bool, error) {
	data := appendString(nil, export)
	data = binary.BigEndian.AppendUint16(data, 1)
	data = binary.BigEndian.AppendUint16(data, infoBlockSize)
	have := false
	err := n.option(optGo, data, func(t replyType, b []byte) error {
		if t != repInfo || len(b) < 2 {
			return fmt.Errorf("%v with %d bytes in answer to %v", t, len(b), optGo)
		}
		switch kind := binary.BigEndian.Uint16(b); {
		case kind == infoExport && len(b) == 12:
			have = true
			return n.setExport(binary.BigEndian.Uint64(b[2:]), binary.BigEndian.Uint16(b[10:]))
		case kind == infoBlockSize && len(b) == 14:
			return n.setBlocks(binary.BigEndian.Uint32(b[2:]), binary.BigEndian.Uint32(b[6:]), binary.BigEndian.Uint32(b[10:]))
		case kind == infoExport || kind == infoBlockSize:
			return fmt.Errorf("information of kind %d has %d bytes", kind, len(b))
		}
		return nil
	})
	var no *refusal
	if errors.As(err, &no) && no.reply == repErrUnsup {
		return false, nil
	}
	if err == nil && !have {
		err = errors.New("server chose the export without telling its size")
	}
	return err == nil, err
}

func (n *negotiation) exportName(export string, noZeroes bool) error {
	if err := n.send(optExportName, []byte(export)); err != nil {
		return err
	}
	b := make([]byte, 134)
	if noZeroes {
		b = b[:10]
	}
	if _, err := io.ReadFull(n.conn, b); err != nil {
		return fmt.Errorf("export %.80q: the server hung up, so it has none of that name: %w", export, err)
	}
	return n.setExport(binary.BigEndian.Uint64(b), binary.BigEndian.Uint16(b[8:]))
}

func (n *negotiation) setExport(size uint64, flags uint16) error {
	if size > math.MaxInt64 {
		return fmt.Errorf("export claims a size of %d bytes", size)
	}
	n.size, n.flags = int64(size), flags
	return nil
}

func (n *negotiation) setBlocks(minimum, preferred, maximum uint32) error {
	pow2 := func(v uint32) bool { return v != 0 && v&(v-1) == 0 }
	if !pow2(minimum) || minimum > 64<<10 || !pow2(preferred) || preferred < minimum || maximum < minimum {
		return fmt.Errorf("block sizes %d, %d and %d make no sense", minimum, preferred, maximum)
	}
	n.minimum, n.preferred = minimum, preferred
	n.maximum = min(maximum, MaxPayload) / minimum * minimum
	return nil
}

// refusal is a server's no to an option.
type refusal struct {
	opt   optionType
	reply replyType
	text  string
}

func (r *refusal) Error() string {
	if r.text == "" {
		return fmt.Sprintf("%v: %v", r.opt, r.reply)
	}
	return fmt.Sprintf("%v: %v (%.200q)", r.opt, r.reply, r.text)
}

func (n *negotiation) send(opt optionType, data []byte) error {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(opt))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	_, err := n.conn.Write(append(b, data...))
	return err
}

// option sends one option and hands every reply before the last to more. A
// server that says no gives a *refusal.
func (n *negotiation) option(opt optionType, data []byte, more func(replyType, []byte) error) error {
	if err := n.send(opt, data); err != nil {
		return err
	}
	for range maxOptions {
		var head [20]byte
		if _, err := io.ReadFull(n.conn, head[:]); err != nil {
			return fmt.Errorf("waiting for the answer to %v: %w", opt, err)
		}
		if m := binary.BigEndian.Uint64(head[0:]); m != magicOptReply {
			return fmt.Errorf("%v: reply magic is %#x", opt, m)
		}
		if o := optionType(binary.BigEndian.Uint32(head[8:])); o != opt {
			return fmt.Errorf("%v: answer is to %v", opt, o)
		}
		t, size := replyType(binary.BigEndian.Uint32(head[12:])), binary.BigEndian.Uint32(head[16:])
		if size > maxOption {
			return fmt.Errorf("%v: answer claims %d bytes, at most %d", opt, size, maxOption)
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(n.conn, body); err != nil {
			return fmt.Errorf("%v: reading the answer: %w", opt, err)
		}
		switch {
		case t == repAck:
			return nil
		case t&repErr != 0:
			return &refusal{opt: opt, reply: t, text: string(body)}
		case more == nil:
			return fmt.Errorf("%v: unexpected %v", opt, t)
		}
		if err := more(t, body); err != nil {
			return err
		}
	}
	return fmt.Errorf("%v: more than %d answers", opt, maxOptions)
}
