// SPDX-License-Identifier: MIT
// Copyright (c) 2026 The wg4netnsd authors

package device

// messageBufferSize is a buffer's size at first. The reader of a larger message replaces
// the buffer by a larger one.
const messageBufferSize = 2048
