package nbd

import (
	"encoding/binary"
	"fmt"
)

// Limits on what a peer may ask for or claim.
const (
	// MaxPayload is the most data in one request or reply, in bytes: the
	// default effective maximum of "Block size constraints".
	MaxPayload = 32 << 20
	// maxName is the longest export name or description (section "Values",
	// strings are at most 4096 bytes).
	maxName = 4096
	// maxOption is the most bytes of one option request or reply.
	maxOption = 64 << 10
	// maxOptions is how many options one side may send before transmission.
	maxOptions = 256
	// maxExtents is the most descriptors in one block status reply.
	maxExtents = 8192
	// maxRuns is how many runs a device may tell for one of them.
	maxRuns = 1 << 16
	// maxChunks is the most structured chunks that may answer one request.
	maxChunks = 1 << 16
)

// Magic numbers.
const (
	magicNBD        = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicReply      = 0x67446698
	magicStructured = 0x668e33ef
)

// Handshake flags, server's and client's: the bits are the same.
const (
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1
)

// optionType is what a client asks before transmission.
type optionType uint32

const (
	optExportName      optionType = 1
	optAbort           optionType = 2
	optList            optionType = 3
	optStartTLS        optionType = 5
	optInfo            optionType = 6
	optGo              optionType = 7
	optStructuredReply optionType = 8
	optListMeta        optionType = 9
	optSetMeta         optionType = 10
)

var optionNames = map[optionType]string{
	optExportName: "NBD_OPT_EXPORT_NAME", optAbort: "NBD_OPT_ABORT", optList: "NBD_OPT_LIST",
	optStartTLS: "NBD_OPT_STARTTLS", optInfo: "NBD_OPT_INFO", optGo: "NBD_OPT_GO",
	optStructuredReply: "NBD_OPT_STRUCTURED_REPLY", optListMeta: "NBD_OPT_LIST_META_CONTEXT",
	optSetMeta: "NBD_OPT_SET_META_CONTEXT",
}

func (o optionType) String() string {
	if n, ok := optionNames[o]; ok {
		return n
	}
	return fmt.Sprintf("option %d", uint32(o))
}

// replyType is the server's answer to an option; errors have the top bit.
type replyType uint32

const (
	repAck           replyType = 1
	repServer        replyType = 2
	repInfo          replyType = 3
	repMetaContext   replyType = 4
	repErr           replyType = 1 << 31
	repErrUnsup      replyType = repErr | 1
	repErrPolicy     replyType = repErr | 2
	repErrInvalid    replyType = repErr | 3
	repErrPlatform   replyType = repErr | 4
	repErrTLSReqd    replyType = repErr | 5
	repErrUnknown    replyType = repErr | 6
	repErrShutdown   replyType = repErr | 7
	repErrBlockSizes replyType = repErr | 8
	repErrTooBig     replyType = repErr | 9
)

var replyNames = map[replyType]string{
	repAck: "NBD_REP_ACK", repServer: "NBD_REP_SERVER", repInfo: "NBD_REP_INFO",
	repMetaContext: "NBD_REP_META_CONTEXT", repErrUnsup: "not supported",
	repErrPolicy: "refused by policy", repErrInvalid: "invalid request",
	repErrPlatform: "not supported on its platform", repErrTLSReqd: "TLS required",
	repErrUnknown: "no export of that name", repErrShutdown: "shutting down",
	repErrBlockSizes: "block sizes must be negotiated", repErrTooBig: "request too big",
}

func (r replyType) String() string {
	if n, ok := replyNames[r]; ok {
		return n
	}
	return fmt.Sprintf("reply %#x", uint32(r))
}

// Information types of NBD_OPT_INFO and NBD_OPT_GO.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags.
const (
	flagHasFlags     = 1 << 0
	flagReadOnly     = 1 << 1
	flagFlush        = 1 << 2
	flagFUA          = 1 << 3
	flagTrim         = 1 << 5
	flagWriteZeroes  = 1 << 6
	flagDF           = 1 << 7
	flagCanMultiConn = 1 << 8
	flagCache        = 1 << 10
)

// command is a request in transmission.
type command uint16

const (
	cmdRead        command = 0
	cmdWrite       command = 1
	cmdDisc        command = 2
	cmdFlush       command = 3
	cmdTrim        command = 4
	cmdCache       command = 5
	cmdWriteZeroes command = 6
	cmdBlockStatus command = 7
)

var commandNames = map[command]string{
	cmdRead: "read", cmdWrite: "write", cmdDisc: "disconnect", cmdFlush: "flush",
	cmdTrim: "trim", cmdCache: "cache", cmdWriteZeroes: "write zeroes", cmdBlockStatus: "block status",
}

func (c command) String() string {
	if n, ok := commandNames[c]; ok {
		return n
	}
	return fmt.Sprintf("command %d", uint16(c))
}

// Command flags.
const (
	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1
	cmdFlagDF     = 1 << 2
	cmdFlagReqOne = 1 << 3
)

// Structured reply chunk types and flag.
const (
	chunkDone = 1 << 0

	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkBlockStatus = 5
	chunkErr         = 1<<15 | 1
	chunkErrOffset   = 1<<15 | 2
)

// The base:allocation metadata context and its flags.
const (
	contextAllocation   = "base:allocation"
	contextAllocationID = 1

	statusHole = 1 << 0
	statusZero = 1 << 1
)

const requestSize = 28

// request is a transmission request header, "Request message".
type request struct {
	flags  uint16
	cmd    command
	cookie uint64
	off    uint64
	length uint32
}

func (r *request) encode(b *[requestSize]byte) {
	binary.BigEndian.PutUint32(b[0:], magicRequest)
	binary.BigEndian.PutUint16(b[4:], r.flags)
	binary.BigEndian.PutUint16(b[6:], uint16(r.cmd))
	binary.BigEndian.PutUint64(b[8:], r.cookie)
	binary.BigEndian.PutUint64(b[16:], r.off)
	binary.BigEndian.PutUint32(b[24:], r.length)
}

func (r *request) decode(b *[requestSize]byte) error {
	if m := binary.BigEndian.Uint32(b[0:]); m != magicRequest {
		return fmt.Errorf("request magic is %#x, want %#x", m, uint32(magicRequest))
	}
	r.flags = binary.BigEndian.Uint16(b[4:])
	r.cmd = command(binary.BigEndian.Uint16(b[6:]))
	r.cookie = binary.BigEndian.Uint64(b[8:])
	r.off = binary.BigEndian.Uint64(b[16:])
	r.length = binary.BigEndian.Uint32(b[24:])
	return nil
}
