// Package pdu is what iSCSI puts on the wire (RFC 7143 section 11): the basic
// header segment and its fields, text keys, serial numbers, digests, and a
// Reader and an encoder for whole PDUs.
//
// A Header is its 48 bytes; fields are read and written in place by accessors
// that carry the names of the RFC, so nothing is converted that isn't looked at.
// The Reader trusts no length: a PDU longer than what was negotiated is an error
// before anything is read for it.
package pdu
